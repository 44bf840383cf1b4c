"""What the fields of a document may be: each shape reads a value, or says what is allowed, and knows its JSON schema.

Invariant: whatever JSON value is read, the outcome is a value or at least one Problem, never another exception.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Any, Protocol, TypeAlias

Path: TypeAlias = tuple[str | int, ...]
_LONGEST_SHOWN = 40
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


class _Nothing:
    """Stands for a value that was refused, or is not there."""

    def __bool__(self) -> bool:
        return False


NOTHING = _Nothing()


@dataclass(frozen=True, slots=True)
class Problem:
    """`path` leads to the field from the top of the document; `text` says what stands there and what is allowed."""

    path: Path
    text: str

    def __str__(self) -> str:
        return f"{spell(self.path)}: {self.text}"


def spell(path: Path) -> str:
    """`spec.rollout.steps[1].percent`; a key that is no plain word stands in quotes."""
    told = ""
    for part in path:
        if isinstance(part, int):
            told += f"[{part}]"
        elif _PLAIN.fullmatch(part):
            told += f".{part}" if told else part
        else:
            told += f"[{shown(part)}]"
    return told or "document"


def shown(value: Any) -> str:
    """A value in one short line, as it looks in the document."""
    if isinstance(value, Mapping):
        return "an object" if value else "an empty object"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    try:
        text = json.dumps(value, ensure_ascii=False, default=repr)
    except ValueError:
        # More digits than Python turns into text.
        text = "a number with very many digits"
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 1]}…"


class Shape(Protocol):
    """What a value may be."""

    @property
    def allowed(self) -> str:
        """What is allowed, for people."""
        ...

    @property
    def schema(self) -> Mapping[str, Any]:
        """The same as a JSON schema; what fields say together is not in it."""
        ...

    def read(self, value: Any, path: Path, problems: list[Problem]) -> Any:
        """The value, typed; NOTHING, with problems added, if it is not allowed."""
        ...


@dataclass(frozen=True, slots=True)
class Leaf:
    """One scalar. `convert` raises ValueError or TypeError, whose text, if any, is a hint that is told too."""

    allowed: str
    schema: Mapping[str, Any]
    convert: Callable[[Any], Any]

    def read(self, value: Any, path: Path, problems: list[Problem]) -> Any:
        """See Shape."""
        try:
            return self.convert(value)
        except (TypeError, ValueError) as error:
            hint = f"; {error}" if str(error) else ""
            problems.append(Problem(path, f"{shown(value)} is not allowed; it must be {self.allowed}{hint}"))
            return NOTHING


@dataclass(frozen=True, slots=True)
class Entry:
    """A field of an object. `default` and `example` are told as they stand in a document; the default of a field that
    must be there is empty. `help`: what it is for, a sentence."""

    shape: Shape
    help: str
    default: str = ""
    example: str = ""
    required: bool = False


@dataclass(frozen=True, slots=True)
class Object:
    """Fields by name. `build` makes the value of those that were there and allowed, and may add problems (it is asked
    although fields were refused, so that all problems are told at once); `extra` is added to the schema."""

    entries: Mapping[str, Entry]
    build: Callable[[dict[str, Any], Path, list[Problem]], Any]
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def allowed(self) -> str:
        """See Shape."""
        return f"an object with {', '.join(self.entries)}"

    @property
    def schema(self) -> Mapping[str, Any]:
        """See Shape."""
        properties = {name: {**entry.shape.schema, "description": entry.help} for name, entry in self.entries.items()}
        required = [name for name, entry in self.entries.items() if entry.required]
        return {
            "type": "object",
            "additionalProperties": False,
            "properties": properties,
            **({"required": required} if required else {}),
            **self.extra,
        }

    def read(self, value: Any, path: Path, problems: list[Problem]) -> Any:
        """See Shape."""
        if not isinstance(value, Mapping):
            problems.append(Problem(path, f"{shown(value)} is not allowed; it must be {self.allowed}"))
            return NOTHING
        before = len(problems)
        problems += [self._unknown(name, path) for name in value if name not in self.entries]
        values = {}
        for name, entry in self.entries.items():
            if name in value:
                read = entry.shape.read(value[name], (*path, name), problems)
                if read is not NOTHING:
                    values[name] = read
            elif entry.required:
                problems.append(Problem((*path, name), f"it is missing; it must be {entry.shape.allowed}"))
        built = self.build(values, path, problems)
        return built if len(problems) == before else NOTHING

    def _unknown(self, name: Any, path: Path) -> Problem:
        close = difflib.get_close_matches(str(name)[:100], self.entries, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(self.entries)}"
        return Problem((*path, str(name)), f"no such field; {hint}")


@dataclass(frozen=True, slots=True)
class MapOf:
    """Any keys that `key` allows, with a `value` each; at most `most`."""

    key: Leaf
    value: Leaf
    most: int

    @property
    def allowed(self) -> str:
        """See Shape."""
        return f"an object, at most {self.most} entries: {self.key.allowed}: {self.value.allowed}"

    @property
    def schema(self) -> Mapping[str, Any]:
        """See Shape."""
        return {
            "type": "object",
            "maxProperties": self.most,
            "propertyNames": self.key.schema,
            "additionalProperties": self.value.schema,
        }

    def read(self, value: Any, path: Path, problems: list[Problem]) -> Any:
        """See Shape."""
        if not isinstance(value, Mapping) or len(value) > self.most:
            problems.append(Problem(path, f"{shown(value)} is not allowed; it must be {self.allowed}"))
            return NOTHING
        before = len(problems)
        read = {
            self.key.read(key, (*path, str(key)), problems): self.value.read(one, (*path, str(key)), problems)
            for key, one in value.items()
        }
        return read if len(problems) == before else NOTHING


@dataclass(frozen=True, slots=True)
class ListOf:
    """One to `most` items."""

    item: Shape
    most: int

    @property
    def allowed(self) -> str:
        """See Shape."""
        return f"a list of 1 to {self.most} items, each {self.item.allowed}"

    @property
    def schema(self) -> Mapping[str, Any]:
        """See Shape."""
        return {"type": "array", "minItems": 1, "maxItems": self.most, "items": self.item.schema}

    def read(self, value: Any, path: Path, problems: list[Problem]) -> Any:
        """See Shape."""
        if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not 1 <= len(value) <= self.most:
            problems.append(Problem(path, f"{shown(value)} is not allowed; it must be {self.allowed}"))
            return NOTHING
        before = len(problems)
        read = tuple(self.item.read(one, (*path, at), problems) for at, one in enumerate(value))
        return read if len(problems) == before else NOTHING


def whole(low: int, high: int) -> Leaf:
    """A whole number."""

    def convert(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError
        return value

    allowed = f"a whole number from {low} to {high}"
    return Leaf(allowed, {"type": "integer", "minimum": low, "maximum": high}, convert)


def number(low: float, high: float) -> Leaf:
    """A number."""

    def convert(value: Any) -> float:
        # Compared before it becomes a float: an int may be too large for one, and NaN compares as nothing.
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError
        return float(value)

    return Leaf(f"a number from {low:g} to {high:g}", {"type": "number", "minimum": low, "maximum": high}, convert)


_SHARE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,6})?)%", re.ASCII)
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)(ms|s|m|h)", re.ASCII)
_SIZE = re.compile(r"([0-9]{1,12})(B|KiB|MiB|GiB)", re.ASCII)
SECONDS = {"h": Decimal(3600), "m": Decimal(60), "s": Decimal(1), "ms": Decimal("0.001")}
BYTES = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10, "B": 1}


def share(low: str, high: str = "100%") -> Leaf:
    """A percentage, spelt as `25%`, read as a share of 1."""
    least, most = (Decimal(bound[:-1]) for bound in (low, high))

    def convert(value: Any) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise ValueError("it needs its percent sign")
        found = _SHARE.fullmatch(_string(value))
        if not found or not least <= (percent := Decimal(found[1])) <= most:
            raise ValueError
        return float(percent / 100)

    return Leaf(f"a percentage from {low} to {high}", _pattern(_SHARE), convert)


def duration(low: str, high: str) -> Leaf:
    """A duration, spelt as `500ms`, `2s`, `5m` or `1h`, read as seconds."""

    def read(text: str) -> Decimal:
        found = _DURATION.fullmatch(text)
        if not found:
            raise ValueError
        return Decimal(found[1]) * SECONDS[found[2]]

    least, most = read(low), read(high)

    def convert(value: Any) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise ValueError("it needs a unit: ms, s, m or h")
        if not least <= (seconds := read(_string(value))) <= most:
            raise ValueError
        return float(seconds)

    return Leaf(f"a duration from {low} to {high} such as 500ms, 2s or 5m", _pattern(_DURATION), convert)


def size(low: int, high: int) -> Leaf:
    """A number of bytes, spelt as `16MiB` or as the number alone."""

    def convert(value: Any) -> int:
        if isinstance(value, str) and (found := _SIZE.fullmatch(value)):
            value = int(found[1]) * BYTES[found[2]]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError
        return value

    schema = {"anyOf": [{"type": "integer", "minimum": low, "maximum": high}, _pattern(_SIZE)]}
    return Leaf(f"a size from {low} to {high} bytes such as 512KiB or 16MiB", schema, convert)


def text(allowed: str, pattern: str, longest: int) -> Leaf:
    """A string that matches all of `pattern` (of a kind that JSON schema and Python read alike)."""
    compiled = re.compile(pattern)

    def convert(value: Any) -> str:
        if not isinstance(value, str) or not 1 <= len(value) <= longest or not compiled.fullmatch(value):
            raise ValueError
        # Half a surrogate pair is no text. Raises UnicodeEncodeError, a ValueError.
        value.encode()
        return value

    schema = {"type": "string", "minLength": 1, "maxLength": longest, "pattern": f"^(?:{pattern})$"}
    return Leaf(allowed, schema, _without_hint(convert))


def one_of(choices: type[StrEnum]) -> Leaf:
    """One of a few words."""
    names = [choice.value for choice in choices]
    return Leaf(listed(names), {"enum": names}, _without_hint(lambda value: choices(_string(value))))


def constant(value: Any) -> Leaf:
    """This and nothing else."""

    def convert(given: Any) -> Any:
        if type(given) is not type(value) or given != value:
            raise ValueError
        return given

    return Leaf(value if isinstance(value, str) else json.dumps(value), {"const": value}, convert)


def flag() -> Leaf:
    """`true` or `false`."""

    def convert(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError
        return value

    return Leaf("true or false", {"type": "boolean"}, convert)


def listed(names: Sequence[str]) -> str:
    """`a, b or c`."""
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _pattern(compiled: re.Pattern[str]) -> dict[str, Any]:
    return {"type": "string", "pattern": f"^(?:{compiled.pattern})$"}


def _without_hint(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def converted(value: Any) -> Any:
        try:
            return convert(value)
        except ValueError:
            raise ValueError from None

    return converted
