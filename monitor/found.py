"""Which versions lie under base paths, how large they are, and whether their files have changed. Blocking, for ever on
a dead network file system: call it in a thread that nobody waits for.

Invariant: only a folder that holds a model counts as a version, so one that is being copied is not taken for one until
its first model file is there; and the files below are looked at only now and then, or when the folder has changed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from monitor.disk import holds_model, version_of

DEEP = 5.0
"""Seconds between two looks at all files."""


@dataclass(frozen=True, slots=True)
class FoundVersion:
    """`stamp` is equal as long as nothing of it changes."""

    size: int
    stamp: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """Of one base path. `error`: why it could not be looked at."""

    versions: Mapping[int, FoundVersion] = field(default_factory=dict)
    error: str = ""


class Folders:
    """Remembers what was found, so that the next look is a cheap one. One thread at a time."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[tuple[tuple[str, int], ...], float, Look]] = {}

    def look(self, base_path: str) -> Look:
        """All versions under one base path."""
        if not base_path.startswith("/"):
            text = "it is not on a disk that a monitor can list; name its versions with `versions: {specific: [...]}`"
            return Look(error=text)
        try:
            listing = tuple(sorted((one.name, one.stat().st_mtime_ns) for one in os.scandir(base_path) if one.is_dir()))
            now, last = time.monotonic(), self._seen.get(base_path)
            if last is not None and last[0] == listing and now < last[1]:
                return last[2]
            look = Look(dict(_versions(base_path, [name for name, _ in listing])))
            self._seen[base_path] = listing, now + max(DEEP, 0.05 * len(listing)), look
        except OSError as error:
            return Look(error=error.strerror or str(error))
        return look


def _versions(base_path: str, names: list[str]) -> list[tuple[int, FoundVersion]]:
    found = []
    for name in names:
        version, folder = version_of(name), Path(base_path, name)
        if version is not None and holds_model(folder):
            found.append((version, _measured(folder)))
    return found


def _measured(folder: Path) -> FoundVersion:
    size = files = newest = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                status = os.stat(os.path.join(where, name))  # noqa: PTH116, PTH118  cheap, there may be many
            except OSError:
                continue  # it went meanwhile
            size, files, newest = size + status.st_size, files + 1, max(newest, status.st_mtime_ns)
    return FoundVersion(size, (size, files, newest))
