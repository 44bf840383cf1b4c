"""How much memory there is for models beside a monitor. Reads small files of the system; 0 where nothing is known.

A server that the monitor started shares its cgroup, so the smallest limit above them counts; one on this machine that
somebody else started has a cgroup of its own, so only the machine's memory is known, and in a container not even that.
"""

from __future__ import annotations

import re
from pathlib import Path

from registry.policy.shapes import BYTES

_SIZE = re.compile(r"([0-9]{1,12})(B|KiB|MiB|GiB|TiB)?", re.ASCII)
_UNITS = {**BYTES, "TiB": 2**40}
_UNLIMITED = 2**62
"""cgroup v1 spells "no limit" as a number near 2**63."""


def parse_memory(text: str) -> int:
    """`8GiB` or a number of bytes. Raises ValueError."""
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise ValueError(f"{text!r} is no size; write for example 8GiB, 512MiB or a number of bytes")
    return int(found[1]) * _UNITS[found[2] or "B"]


def memory_beside(*, shared: bool, root: Path = Path("/")) -> int:
    """Bytes for a server on this machine; `shared`: in this process's own cgroup."""
    total, limit = _machine(root), _limit(root)
    if limit is None or (total and limit >= total):
        return total
    return limit if shared else 0


def _machine(root: Path) -> int:
    try:
        found = re.search(r"^MemTotal:\s+(\d+) kB", (root / "proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def _limit(root: Path) -> int | None:
    """The smallest limit of this process's cgroup and those above it; None: there is none."""
    limits = []
    for folder, name in _cgroups(root):
        for above in (folder, *folder.parents):
            try:
                text = (above / name).read_text().strip()
            except OSError:
                continue
            if text.isdigit() and int(text) < _UNLIMITED:
                limits.append(int(text))
    return min(limits, default=None)


def _cgroups(root: Path) -> list[tuple[Path, str]]:
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    base, found = root / "sys/fs/cgroup", []
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if not controllers:
            found.append((base / path.strip("/"), "memory.max"))
        elif "memory" in controllers.split(","):
            found.append((base / "memory" / path.strip("/"), "memory.limit_in_bytes"))
    return found
