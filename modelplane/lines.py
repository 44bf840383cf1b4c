"""Lines for people: cut to the terminal's width, coloured on a terminal that wants it, whole and plain for a pipe."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple, TextIO

from modelplane.logs import colours_wanted
from modelplane.table import clean, columns, fit


class Tone(StrEnum):
    """How a line is meant; the value is the terminal's code for it."""

    PLAIN = ""
    WAITING = "33"
    BAD = "31"


class Line(NamedTuple):
    """A line of text."""

    text: str
    tone: Tone = Tone.PLAIN


def block(
    head: Sequence[str], rows: Iterable[Sequence[str]], tones: Sequence[Tone] = (), *, title: str = ""
) -> list[Line]:
    """A table with an empty line before it; no tones: all plain."""
    cells = [tuple(clean(cell) for cell in row) for row in rows]
    texts = columns(head, cells)
    lines = [
        Line(text, tone) for text, tone in zip(texts, (Tone.PLAIN, *(tones or [Tone.PLAIN] * len(cells))), strict=True)
    ]
    return [Line(""), *([Line(title)] if title else []), *lines]


def terminal_width(stream: TextIO) -> int:
    """Columns; whoever reads through a pipe wants whole lines."""
    return shutil.get_terminal_size().columns if stream.isatty() else 10_000


def show(lines: Iterable[Line], stream: TextIO) -> None:
    """Write them."""
    width = terminal_width(stream)
    colours = colours_wanted(stream)
    for line in lines:
        text = fit(clean(line.text), width)
        stream.write(f"\x1b[{line.tone}m{text}\x1b[0m\n" if colours and line.tone else f"{text}\n")
    stream.flush()
