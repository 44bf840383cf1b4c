"""What `modelplane up` shows: lines that stay, and under them, on a terminal, a block that is redrawn in place.

Invariant: an output that nobody reads any more never stops the stack from being ended cleanly.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import TextIO

from modelplane.table import clean, fit


class Screen:
    """One output. On a terminal each update is one write, so that nothing flickers."""

    def __init__(self, stream: TextIO, *, live: bool) -> None:
        self.live = live
        self._stream = stream
        self._block: list[str] = []
        self._drawn = 0
        self._broken = False

    @property
    def width(self) -> int:
        """Columns."""
        return shutil.get_terminal_size((100, 40)).columns

    def line(self, text: str = "") -> None:
        """Print a line that stays."""
        self.lines([text])

    def lines(self, texts: Sequence[str]) -> None:
        """Print lines that stay, above the block."""
        self._write(self._redraw([clean(text) for text in texts], self._block))

    def block(self, lines: Sequence[str]) -> None:
        """Show these lines under all others from now on; nothing where the output is no terminal."""
        if self.live and list(lines) != self._block:
            self._write(self._redraw([], list(lines)))

    def _redraw(self, above: Sequence[str], block: list[str]) -> str:
        if not self.live:
            return "".join(f"{line}\n" for line in above)
        size = shutil.get_terminal_size((100, 40))
        shown = [fit(line, size.columns - 1) for line in block[: max(1, size.lines - 1)]]
        up = f"\x1b[{self._drawn}F" if self._drawn else "\r"
        # Each line is overwritten and its rest cleared; only then what stands below goes.
        body = "".join(f"{line}\x1b[K\n" for line in (*above, *shown))
        self._block, self._drawn = block, len(shown)
        return f"{up}{body}\x1b[J"

    def _write(self, text: str) -> None:
        if self._broken:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            # The terminal was closed, or the reader of the pipe has gone.
            self._broken = True
