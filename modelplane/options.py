"""A configuration dataclass as flags, environment variables and keys of a TOML file.

Invariant: each value comes from the first of flag, environment, file and default that has one, and whatever is said
against a value names the place that it came from.

A field's metadata: `help` (one line), `metavar`, `flag` (default: the field's name with dashes), `short` (a second flag
of one letter), `key` (where the file's key and the variable shall not follow from the flag), `choices`, and for a tuple
`separator` (default a comma; None for values that may hold one). A field that is itself a dataclass becomes a group:
its own fields say their flags. From `--xds-listen` follow
MODELPLANE_XDS_LISTEN and the file's key `xds-listen`.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from modelplane.errors import OptionError

ENVIRONMENT_PREFIX = "MODELPLANE_"
_TRUE, _FALSE = frozenset({"1", "true", "yes", "on"}), frozenset({"0", "false", "no", "off"})
_KINDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}

Config = TypeVar("Config")


@dataclass(frozen=True, slots=True)
class Option:
    """One field of a configuration, and how each source spells it. `path` leads to it from the configuration."""

    path: tuple[str, ...]
    flag: str
    kind: type
    default: Any
    many: bool = False
    help: str = ""
    metavar: str = ""
    choices: tuple[str, ...] = ()
    separator: str | None = ","
    group: str = ""
    short: str = ""
    name: str = ""

    @property
    def key(self) -> str:
        """The name in the TOML file."""
        return self.name or self.flag.removeprefix("--")

    @property
    def dest(self) -> str:
        """The name in argparse's namespace."""
        return self.key.replace("-", "_")

    @property
    def env(self) -> str:
        """The environment variable."""
        return ENVIRONMENT_PREFIX + self.dest.upper()

    @property
    def required(self) -> bool:
        """Whether some source has to give it."""
        return self.default is dataclasses.MISSING

    def from_text(self, text: str) -> Any:
        """Read a flag's or an environment variable's text. Raises ValueError with the end of a sentence."""
        if not self.many:
            return self._scalar(text)
        parts = [text] if self.separator is None else text.split(self.separator)
        return tuple(self._scalar(part.strip()) for part in parts if part.strip())

    def from_toml(self, value: object) -> Any:
        """Read a value of the file, whose type has to fit. Raises ValueError with the end of a sentence."""
        if self.many and isinstance(value, list):
            return tuple(self._typed(one) for one in value)
        return (self._typed(value),) if self.many else self._typed(value)

    def _typed(self, value: object) -> Any:
        if self.kind in (str, Path) and isinstance(value, str):
            return self._scalar(value)
        if self.kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if type(value) is not self.kind:
            raise ValueError(f"{value!r} is not {_KINDS[self.kind]}")
        return value

    def _scalar(self, text: str) -> Any:
        if self.choices and text not in self.choices:
            raise ValueError(f"{text!r} is none of {', '.join(self.choices)}")
        if self.kind is bool:
            if text.lower() not in _TRUE | _FALSE:
                raise ValueError(f"{text!r} is not true or false")
            return text.lower() in _TRUE
        try:
            value = self.kind(text)
        except ValueError:
            raise ValueError(f"{text!r} is not {_KINDS[self.kind]}") from None
        if isinstance(value, float) and math.isnan(value):  # it would pass every check of a bound
            raise ValueError(f"{text!r} is not a number")
        return value


def options_of(config: type) -> tuple[Option, ...]:
    """All options of a configuration dataclass, those of nested ones included, in the order of the fields."""
    return tuple(_walk(config, (), None, ""))


def _walk(config: type, path: tuple[str, ...], defaults: Any, group: str) -> typing.Iterator[Option]:
    hints = typing.get_type_hints(config)
    for item in fields(config):
        if not item.init:
            continue
        kind, many = _kind(hints[item.name], config, item.name)
        default = _default(item) if defaults is None else getattr(defaults, item.name)
        if is_dataclass(kind):
            inner = None if default is dataclasses.MISSING else default
            title = str(item.metadata.get("help", item.name.replace("_", " ")))
            yield from _walk(kind, (*path, item.name), inner, title)
            continue
        yield Option(
            path=(*path, item.name),
            flag=item.metadata.get("flag", "--" + item.name.replace("_", "-")),
            kind=kind,
            default=default,
            many=many,
            help=item.metadata.get("help", ""),
            metavar=item.metadata.get("metavar", ""),
            choices=tuple(item.metadata.get("choices", ())),
            separator=item.metadata.get("separator", ","),
            group=group,
            short=item.metadata.get("short", ""),
            name=item.metadata.get("key", ""),
        )


def _default(item: dataclasses.Field[Any]) -> Any:
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return item.default


def _kind(hint: Any, config: type, name: str) -> tuple[type, bool]:
    """The scalar type of a hint, and whether it is a tuple of them: `X`, `X | None` or `tuple[X, ...]`."""
    many = False
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        parts = [part for part in typing.get_args(hint) if part is not type(None)]
        hint = parts[0] if len(parts) == 1 else hint
    if typing.get_origin(hint) is tuple and typing.get_args(hint)[1:] == (...,):
        hint, many = typing.get_args(hint)[0], True
    if hint not in _KINDS and not is_dataclass(hint):
        raise TypeError(f"{config.__name__}.{name}: no flag can be made of the type {hint}")
    return typing.cast("type", hint), many


@dataclass(frozen=True, slots=True)
class Sources:
    """Where values may come from. `flags` holds only what was given; `document` is the part of the file for this
    command; `file` is its path, for messages."""

    flags: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    document: Mapping[str, Any] = field(default_factory=dict)
    file: str = ""

    def find(self, option: Option) -> tuple[Any, str] | None:
        """The value and the name of the source that it came from; None if none has it. Raises OptionError."""
        if option.dest in self.flags:
            source, raw = option.flag, self.flags[option.dest]
            return self._read(lambda: _from_flag(option, raw), source), source
        if option.env in self.environment:
            source, text = f"environment variable {option.env}", self.environment[option.env]
            return self._read(lambda: option.from_text(text), source), source
        if option.key in self.document:
            source, value = f"{option.key!r} in {self.file}", self.document[option.key]
            return self._read(lambda: option.from_toml(value), source), source
        return None

    @staticmethod
    def _read(convert: typing.Callable[[], Any], source: str) -> Any:
        try:
            return convert()
        except ValueError as error:
            raise OptionError(f"{source}: {error}") from None


def _from_flag(option: Option, raw: Any) -> Any:
    if isinstance(raw, list):  # a repeated flag
        return tuple(value for text in raw for value in option.from_text(text))
    return raw if isinstance(raw, bool) else option.from_text(raw)


def build(config: type[Config], sources: Sources) -> Config:
    """Make the configuration. Raises OptionError; a ValueError of its own checks is one too, with the source named."""
    options = options_of(config)
    values: dict[tuple[str, ...], Any] = {}
    origins: dict[str, str] = {}
    for option in options:
        found = sources.find(option)
        if found is not None:
            values[option.path], origins[option.dest] = found
        elif option.required:
            raise OptionError(f"{option.flag} is missing (or {option.env}, or {option.key!r} in the file of --config)")
    try:
        return _construct(config, (), values)
    except ValueError as error:
        raise OptionError(_with_origin(str(error), options, origins)) from None


def _construct(config: type[Config], path: tuple[str, ...], values: Mapping[tuple[str, ...], Any]) -> Config:
    hints = typing.get_type_hints(config)
    given: dict[str, Any] = {}
    for item in fields(typing.cast("Any", config)):
        here = (*path, item.name)
        kind = _kind(hints[item.name], config, item.name)[0] if item.init else None
        if kind is None:
            continue
        if is_dataclass(kind):
            changed = {key[len(here) :]: value for key, value in values.items() if key[: len(here)] == here}
            default = _default(item)
            if changed and default not in (dataclasses.MISSING, None):
                given[item.name] = _replace(default, changed)
            elif changed or default is dataclasses.MISSING:
                given[item.name] = _construct(kind, here, values)
        elif here in values:
            given[item.name] = values[here]
    return config(**given)


def _replace(default: Any, changed: Mapping[tuple[str, ...], Any]) -> Any:
    # What a parent sets as its default for a nested configuration stays where no source says otherwise.
    flat = {path[0]: value for path, value in changed.items() if len(path) == 1}
    for name in {path[0] for path in changed if len(path) > 1}:
        inner = {path[1:]: value for path, value in changed.items() if path[0] == name}
        flat[name] = _replace(getattr(default, name), inner)
    return dataclasses.replace(default, **flat)


def _with_origin(message: str, options: tuple[Option, ...], origins: Mapping[str, str]) -> str:
    """Add the sources of the values that a message speaks of, found by the field's or the flag's name in it."""
    words = set(message.replace("=", " ").replace(":", " ").replace(",", " ").replace("'", " ").split())
    named = [option for option in options if words & {option.path[-1], ".".join(option.path), option.flag, option.key}]
    sources = [origins[option.dest] for option in named if option.dest in origins]
    sources = [source for source in sources if source not in message]
    # The checks know their fields, and whoever reads this knows the flags.
    first = re.match(r"\w+", message)
    flags = {option.flag for option in named if first and option.path[-1] == first[0]}
    if first and len(flags) == 1:
        message = flags.pop() + message[first.end() :]
    return f"{message} (from {', '.join(sources)})" if sources else message
