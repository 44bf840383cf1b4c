"""The steps of starting up: each gets a line with the time it took; on a terminal, those that go on are shown below."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from modelplane.screen import Screen

_SPINNER = "|/-\\"


@dataclass(slots=True)
class Step:
    """One step; `note` is what is shown beside it, and can change while it goes on."""

    title: str
    began: float
    note: str = ""
    details: list[str] = field(default_factory=list)


class Progress:
    """All steps of one start; several may go on at once."""

    def __init__(self, screen: Screen, clock: Callable[[], float] = time.monotonic) -> None:
        self._screen = screen
        self._clock = clock
        self._open: list[Step] = []

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """A step goes on inside; its line is printed if it ends without an exception."""
        step = Step(title, self._clock())
        self._open.append(step)
        try:
            yield step
        except BaseException:
            self._open.remove(step)
            raise
        self._open.remove(step)
        lines = [self._line(" ", step), *(f"    {detail}" for detail in step.details)]
        self._screen.lines(lines)
        self.draw()

    def draw(self) -> None:
        """Show the steps that go on; call it some times a second."""
        turn = _SPINNER[int(self._clock() * 8) % len(_SPINNER)]
        self._screen.block([self._line(turn, step) for step in self._open])

    def _line(self, mark: str, step: Step) -> str:
        return f"{mark} {step.title:<16} {self._clock() - step.began:5.1f} s  {step.note}".rstrip()
