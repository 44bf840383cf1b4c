"""Tells which versions lie under the base paths that somebody asks for, as long as that is watched.

Invariant: the looks are in a thread that nobody waits for, and a base path whose disk does not answer is left to that
thread and skipped until it is back, so a dead network file system leaves only its own models without news.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from monitor.found import Folders, Look
from monitor.threads import in_daemon_thread
from registry.found import Found, FoundModel

INTERVAL, PER_MODEL = 1.0, 0.002
PATIENCE = 3.0
_HANGS = "its disk does not answer"
_ELSEWHERE = "the monitor was told that it does not see the server's disk (--disk-elsewhere)"


@dataclass(slots=True)
class _Round:
    """One look at many paths, in a thread of its own. `at`: the one it is at."""

    folders: Folders
    paths: tuple[str, ...]
    at: str = ""
    looks: dict[str, Look] = field(default_factory=dict)
    given_up: bool = False

    def run(self) -> None:
        for path in self.paths:
            if self.given_up:
                return
            self.at = path
            self.looks[path] = self.folders.look(path)


class FoundWatch:
    """`run` it in the caller's task group. `seen` is called after each look."""

    def __init__(self, seen: Callable[[], None], *, sees: bool = True) -> None:
        """`sees`: the disk is that of this machine; else nothing of it is looked at."""
        self._seen = seen
        self._sees = sees
        self._paths: Mapping[str, str] = {}
        self._looks: dict[str, Look] = {}
        self._folders = Folders()
        self._hanging: dict[str, asyncio.Future[None]] = {}
        self._soon = asyncio.Event()

    def want(self, paths: Mapping[str, str]) -> None:
        """The base paths, by model."""
        if paths != self._paths:
            self._paths = dict(paths)
            self._soon.set()

    @property
    def found(self) -> Found | None:
        """What is there; None until all was looked at once."""
        if not all(path in self._looks for path in self._paths.values()):
            return None
        return Found({name: _told(path, self._looks[path]) for name, path in self._paths.items()})

    @property
    def stamps(self) -> Mapping[tuple[str, int], object]:
        """What each version's files look like, by base path and number."""
        looks = self._looks.items()
        return {(path, number): one.stamp for path, look in looks for number, one in look.versions.items()}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._soon.clear()
            wanted = frozenset(self._paths.values())
            self._looks = {path: look for path, look in self._looks.items() if path in wanted}
            self._hanging = {path: thread for path, thread in self._hanging.items() if not thread.done()}
            if self._sees:
                await self._look(wanted - self._hanging.keys())
            else:
                self._looks = dict.fromkeys(wanted, Look(error=_ELSEWHERE))
            self._seen()
            try:
                async with asyncio.timeout(max(INTERVAL, PER_MODEL * len(wanted))):
                    await self._soon.wait()
            except TimeoutError:
                continue

    async def _look(self, paths: Iterable[str]) -> None:
        rest = sorted(paths)
        while rest:
            current = _Round(self._folders, tuple(rest))
            thread = in_daemon_thread(current.run, "found versions")
            before = -1
            while len(current.looks) > before and not thread.done():
                before = len(current.looks)
                await asyncio.wait({thread}, timeout=PATIENCE)
            self._looks |= current.looks
            if thread.done():
                thread.result()
                return
            hangs, current.given_up = current.at, True
            self._hanging[hangs] = thread
            # What was there is likely to be there still.
            self._looks[hangs] = Look(self._looks.get(hangs, Look()).versions, _HANGS)
            rest = [path for path in rest if path not in current.looks and path != hangs]


def _told(path: str, look: Look) -> FoundModel:
    return FoundModel(path, {number: one.size for number, one in look.versions.items()}, look.error)
