"""Lines that stay, and a block below them that is redrawn in place."""

from __future__ import annotations

import io

import pytest

from modelplane.local.progress import Progress
from modelplane.screen import Screen


def replay(text: str) -> list[str]:
    """What a terminal shows after this output: just the few sequences that Screen uses."""
    rows, at, column = [""], 0, 0
    position = 0
    while position < len(text):
        if text.startswith("\x1b[", position):
            end = next(index for index in range(position + 2, len(text)) if text[index].isalpha())
            count, kind = text[position + 2 : end], text[end]
            match kind:
                case "F":
                    at -= int(count)
                    column = 0
                case "K":
                    rows[at] = rows[at][:column]
                case "J":
                    rows = [*rows[:at], ""] if column == 0 else rows[: at + 1]
            position = end + 1
            continue
        character = text[position]
        if character == "\n":
            at, column = at + 1, 0
            if at == len(rows):
                rows.append("")
        elif character == "\r":
            column = 0
        else:
            rows[at] = rows[at][:column] + character + rows[at][column + 1 :]
            column += 1
        position += 1
    return rows


@pytest.fixture(autouse=True)
def _size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("LINES", "6")


def test_the_block_is_replaced_and_lines_stay_above_it() -> None:
    output = io.StringIO()
    screen = Screen(output, live=True)
    screen.line("first")
    screen.block(["table one", "row"])
    screen.block(["table two, wider than before", "row", "row"])
    screen.line("second")
    screen.block(["short"])
    assert replay(output.getvalue()) == ["first", "second", "short", ""]


def test_the_block_never_outgrows_the_terminal() -> None:
    output = io.StringIO()
    screen = Screen(output, live=True)
    screen.block([f"row {number} " + "x" * 100 for number in range(20)])
    rows = replay(output.getvalue())
    assert len(rows) == 6
    assert all(len(row) < 40 for row in rows)


def test_an_unchanged_block_is_not_written_again() -> None:
    output = io.StringIO()
    screen = Screen(output, live=True)
    screen.block(["same"])
    written = len(output.getvalue())
    screen.block(["same"])
    assert len(output.getvalue()) == written


def test_plain_output_has_lines_only() -> None:
    output = io.StringIO()
    screen = Screen(output, live=False)
    screen.block(["table"])
    screen.line("model \x1b[31mred\x07")
    assert output.getvalue() == "model  [31mred \n"


def test_a_reader_that_has_gone_is_no_reason_to_fail() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    screen = Screen(Gone(), live=False)
    screen.line("lost")
    screen.line("lost too")


def test_steps_are_listed_with_their_time_when_they_end() -> None:
    output, now = io.StringIO(), 0.0
    progress = Progress(Screen(output, live=False), clock=lambda: now)
    with progress.step("etcd") as step:
        step.note = "127.0.0.1:2379"
        step.details.append("kept data")
        now = 1.25
    with pytest.raises(ZeroDivisionError), progress.step("envoy"):
        raise ZeroDivisionError
    assert output.getvalue() == "  etcd               1.2 s  127.0.0.1:2379\n    kept data\n"
