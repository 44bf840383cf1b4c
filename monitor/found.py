"""Which versions lie under base paths, how large they are, and whether their files have changed. Blocking, for ever on
a dead network file system: call it in a thread that nobody waits for.

Invariant: only a folder that holds a model counts as a version, and only once nothing in it has changed for SETTLED
seconds, so that one that is being copied is not taken for one: TensorFlow Serving loads a model without its variables,
and never looks at them again. The files are looked at only now and then, or when the folder has changed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from monitor.disk import holds_model, version_of

DEEP, SOON = 5.0, 0.5
"""Seconds between two looks at all files, and while some may be changing."""
SETTLED = 2.0


@dataclass(frozen=True, slots=True)
class FoundVersion:
    """`stamp` is equal as long as nothing of it changes; `changed`: when something last did, in Unix seconds."""

    size: int
    stamp: tuple[int, ...]
    changed: float = 0.0


@dataclass(frozen=True, slots=True)
class Look:
    """Of one base path. `error`: why it could not be looked at."""

    versions: Mapping[int, FoundVersion] = field(default_factory=dict)
    error: str = ""


class Folders:
    """Remembers what was found, so that the next look is a cheap one. One thread at a time."""

    def __init__(self, settled: float = SETTLED) -> None:
        self._settled = settled
        self._seen: dict[str, tuple[tuple[tuple[str, int], ...], float, Look]] = {}
        self._known: dict[tuple[str, int], FoundVersion] = {}
        self._changing: dict[tuple[str, int], tuple[FoundVersion, float]] = {}

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
            look = Look(self._versions(base_path, [name for name, _ in listing], now))
        except OSError as error:
            return Look(error=error.strerror or str(error))
        changing = any(path == base_path for path, _ in self._changing)
        self._seen[base_path] = listing, now + (SOON if changing else max(DEEP, 0.05 * len(listing))), look
        return look

    def _versions(self, base_path: str, names: list[str], now: float) -> dict[int, FoundVersion]:
        there = {version: Path(base_path, name) for name in names if (version := version_of(name)) is not None}
        found = {version: _measured(folder) for version, folder in there.items() if holds_model(folder)}
        for known in (self._known, self._changing):
            for key in [key for key in known if key[0] == base_path and key[1] not in found]:
                del known[key]
        told = {version: self._told((base_path, version), one, now) for version, one in found.items()}
        return {version: one for version, one in told.items() if one is not None}

    def _told(self, key: tuple[str, int], one: FoundVersion, now: float) -> FoundVersion | None:
        """It if it has settled; else what it was before, if that was told."""
        known = self._known.get(key)
        if known == one:
            self._changing.pop(key, None)
            return known
        changing, since = self._changing.setdefault(key, (one, now))
        if changing != one:
            since = now
            self._changing[key] = one, now
        # The file system's clock may be another one.
        if now - since < self._settled and time.time() - one.changed < self._settled:
            return known
        del self._changing[key]
        self._known[key] = one
        return one


def _measured(folder: Path) -> FoundVersion:
    size = files = newest = 0
    for where, _, names in os.walk(folder):
        for name in (".", *names):
            try:
                status = os.stat(os.path.join(where, name))  # noqa: PTH116, PTH118  cheap, there may be many
            except OSError:
                continue  # it went meanwhile
            # A copy may set the time of change, but never that of the inode.
            newest = max(newest, status.st_mtime_ns, status.st_ctime_ns)
            if name != ".":
                size, files = size + status.st_size, files + 1
    return FoundVersion(size, (size, files, newest), newest / 1e9)
