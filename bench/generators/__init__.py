"""Load generators: each a program of its own, so that its CPU time is nobody else's, behind one small interface.

Invariant: a Run comes back only if every single request got a gRPC OK; anything else is a BenchError that says what
came instead. A benchmark of errors is no benchmark.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from bench.errors import BenchError
from bench.generators.ghz import Ghz
from bench.generators.h2load import H2load
from bench.generators.job import Generator, Job, run
from bench.generators.python import Python

__all__ = ["Generator", "Job", "choose", "run"]

NAMES = ("ghz", "h2load", "python")


def choose(name: str = "auto") -> Generator:
    """The generator of that name, or for `auto` the first of NAMES that is on PATH. Raises BenchError."""
    found = {candidate: shutil.which(candidate) for candidate in ("ghz", "h2load")}
    if name == "auto":
        name = next((candidate for candidate in NAMES if found.get(candidate)), "python")
    if name == "python":
        return Python()
    path = found[name]
    if path is None:
        mend = {"ghz": "see https://ghz.sh", "h2load": "Debian's package nghttp2-client has it"}[name]
        raise BenchError(f"{name} is not on PATH ({mend}); --generator python needs nothing")
    return Ghz(Path(path)) if name == "ghz" else H2load(Path(path))
