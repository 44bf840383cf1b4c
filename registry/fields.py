"""More readers of what records hold, for those that have a file of their own. Each raises TypeError or ValueError that
says what is allowed, which `read_field` (registry/records.py) turns into a RecordError that names the field.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from registry.records import read_int64

T = TypeVar("T")
K = TypeVar("K")


def read_figure(low: float = 0.0, high: float = float("inf")) -> Callable[[Any], float]:
    """A reader of figures from `low` to `high`; infinity and what is no number are none."""

    def convert(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError("not a number")
        if not low <= value <= high or value == float("inf"):
            raise ValueError(f"not a number from {low:g} to {high:g}")
        return float(value)

    return convert


def read_version_key(name: str) -> int:
    """A version that is the name of a member, for JSON has no other names than texts."""
    if not (name.isascii() and name.isdigit()):
        raise ValueError(f"{name!r} is not a version")
    return read_int64(name)


def read_optional_int64(value: Any) -> int | None:
    """A number of 64 bits, or none."""
    return None if value is None else read_int64(value)


def read_rows(convert: Callable[[Any], T]) -> Callable[[Any], tuple[T, ...]]:
    """A reader of lists."""

    def read(rows: Any) -> tuple[T, ...]:
        if not isinstance(rows, list | tuple):
            raise TypeError("not a list")
        return tuple(map(convert, rows))

    return read


def read_members(name: Callable[[str], K], convert: Callable[[Any], T]) -> Callable[[Any], dict[K, T]]:
    """A reader of objects whose members' names say something, such as versions."""

    def read(rows: Any) -> dict[K, T]:
        return {name(key): convert(value) for key, value in rows.items()}

    return read
