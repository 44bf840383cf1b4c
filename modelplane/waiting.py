"""What is shown while a drain goes on: a block that is redrawn on a terminal, else a line when who is waited for
changes; or, as JSON, nothing but the result."""

from __future__ import annotations

import json
import re
import sys
import time
from typing import Any

from modelplane.draining import Progress
from modelplane.screen import Screen

_NUMBERS = re.compile(r"\d+")


class Display:
    """Of one command for one instance; `title` says what goes on."""

    def __init__(self, title: str, *, as_json: bool) -> None:
        self._as_json = as_json
        self._title = title
        self._screen = Screen(sys.stdout, live=sys.stdout.isatty())
        self._started = time.monotonic()
        self._said: frozenset[str] = frozenset()
        self.waiting: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._started

    def line(self, text: str) -> None:
        """Something that stays."""
        if not self._as_json:
            self._screen.line(text)

    def show(self, progress: Progress) -> None:
        """What is waited for now."""
        self.waiting = progress.waiting
        if self._screen.live and not self._as_json:
            rows = [f"  waiting for {phrase}" for phrase in progress.waiting]
            self._screen.block([f"{self._title}  {self.seconds:.0f} s", *rows] if rows else [])

    def tick(self) -> None:
        """A second has passed."""
        if self._screen.live:
            self.show(Progress(False, self.waiting))
        elif self.waiting and not self._as_json:
            # One request less in flight is no news for a log.
            kinds = frozenset(_NUMBERS.sub("", phrase) for phrase in self.waiting)
            if kinds - self._said:
                self._screen.line(f"{self._title}: waiting for {'; '.join(self.waiting)}")
            self._said = kinds

    def end(self, text: str, document: dict[str, Any]) -> None:
        """The result: a line, or the document."""
        if self._as_json:
            seconds = {"seconds": round(self.seconds, 3), "waiting": list(self.waiting)}
            sys.stdout.write(json.dumps({**document, **seconds}, indent=2, ensure_ascii=False) + "\n")
        else:
            self._screen.block([])
            if text:
                self._screen.line(text)
