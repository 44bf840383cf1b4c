"""One command's flags and help, made of its configuration dataclasses; see options.py for the rules."""

from __future__ import annotations

import argparse
import difflib
import os
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar, cast

from modelplane.errors import OptionError
from modelplane.options import Option, Sources, build, options_of

Config = TypeVar("Config")


class Parser(argparse.ArgumentParser):
    """argparse, with errors as exceptions and without guessing at half-typed flags."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting, so that the CLI alone decides how errors look."""
        raise OptionError(f"{message} (see {self.prog} --help)")


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        width = min(shutil.get_terminal_size((100, 24)).columns - 2, 110)
        super().__init__(prog, max_help_position=32, width=width)

    def _split_lines(self, text: str, width: int) -> list[str]:
        # A line break in the help text is kept: the second line says the default and the environment variable.
        return [wrapped for line in text.splitlines() for wrapped in super(_Help, self)._split_lines(line, width)]


class Settings:
    """The configurations that a command was started with, by their types."""

    def __init__(
        self,
        values: Mapping[type, Any],
        file: str = "",
        arguments: Mapping[str, str] = MappingProxyType({}),
        rest: tuple[str, ...] = (),
    ) -> None:
        self._values = values
        self.file = file
        """The path of the file of --config; empty if there is none."""
        self.arguments = arguments
        """The arguments that were given, by their names."""
        self.rest = rest
        """What followed them."""

    def __getitem__(self, config: type[Config]) -> Config:
        return cast("Config", self._values[config])


class CommandLine:
    """The flags of one command: `configs` are the dataclasses that it is configured by. `arguments`: what may stand
    beside the flags, anywhere among them, in this order, with its help; each may be left out. `rest`: the name and the
    help of what may follow them any number of times; an empty name: nothing may."""

    def __init__(
        self,
        command: str,
        configs: Sequence[type],
        *,
        description: str,
        examples: Sequence[str] = (),
        usage: str = "[options]",
        arguments: Mapping[str, str] = MappingProxyType({}),
        rest: tuple[str, str] = ("", ""),
    ) -> None:
        self.command = command
        self.configs = tuple(configs)
        self.options = tuple(option for config in configs for option in options_of(config))
        flags = [option.flag for option in self.options]
        if len(set(flags)) != len(flags):
            raise TypeError(
                f"{command}: several fields want the flags {sorted({f for f in flags if flags.count(f) > 1})}"
            )
        self.parser = Parser(
            prog=f"modelplane {command}",
            usage=f"modelplane {command} {usage}",
            description=description,
            epilog=_epilog(examples),
            formatter_class=_Help,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
        )
        self.arguments = tuple(arguments)
        for name, text in arguments.items():
            # A name that no flag can have.
            self.parser.add_argument(f"<{name}>", metavar=name, nargs="?", help=text)
        if rest[0]:
            self.parser.add_argument("<rest>", metavar=rest[0], nargs="*", help=rest[1])
        groups: dict[str, argparse._ArgumentGroup] = {}
        for option in self.options:
            if option.group and option.group not in groups:
                groups[option.group] = self.parser.add_argument_group(option.group)
            _add(groups.get(option.group, self.parser), option)
        groups.get("logging", self.parser).add_argument(
            "--config",
            metavar="FILE",
            help=f"a TOML file with the same names as the flags; a table [{command}] in it is for this command alone\n"
            "(env MODELPLANE_CONFIG)",
        )

    def parse(self, argv: Sequence[str], environment: Mapping[str, str] = os.environ) -> Settings:
        """Read flags, environment and file. Raises OptionError; exits with 0 for --help."""
        flags = vars(self.parser.parse_intermixed_args(list(argv)))
        given = {name: flags.pop(f"<{name}>", None) for name in self.arguments}
        more = tuple(flags.pop("<rest>", None) or ())
        file = flags.pop("config", None) or environment.get("MODELPLANE_CONFIG", "")
        document = self._document(Path(file)) if file else {}
        sources = Sources(flags, environment, document, file)
        values: dict[type, Any] = {config: build(config, sources) for config in self.configs}
        return Settings(values, file, {name: value for name, value in given.items() if value}, more)

    def _document(self, file: Path) -> Mapping[str, Any]:
        try:
            document = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise OptionError(f"--config: can't read {file}: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise OptionError(f"--config: {file} is not TOML: {error}") from None
        own = document.get(self.command, {})
        if not isinstance(own, dict):
            raise OptionError(f"{file}: {self.command!r} has to be a table, [{self.command}]")
        shared = {key: value for key, value in document.items() if not isinstance(value, dict)}
        known = {option.key for option in self.options}
        for key in (*shared, *own):
            if key not in known:
                raise OptionError(self._unknown(key, file, in_table=key in own))
        return {**shared, **own}

    def _unknown(self, key: str, file: Path, *, in_table: bool) -> str:
        close = difflib.get_close_matches(key, [option.key for option in self.options], n=1)
        if close:
            return f"{file}: unknown key {key!r}; did you mean {close[0]!r}?"
        hint = (
            "" if in_table else f"; if it is for another command, put it in that command's table, like [{self.command}]"
        )
        return f"{file}: unknown key {key!r}{hint}"


def _epilog(examples: Sequence[str]) -> str:
    lines = ["A value is taken from the flag, else the environment, else the file of --config."]
    if examples:
        lines += ["", "examples:", *(f"  {line}" for line in examples)]
    return "\n".join(lines)


def _add(group: argparse._ActionsContainer, option: Option) -> None:
    text = f"{option.help}\n({_default_text(option)}env {option.env})".replace("%", "%%")
    flags = (option.short, option.flag) if option.short else (option.flag,)
    if option.kind is bool:
        group.add_argument(*flags, dest=option.dest, action=argparse.BooleanOptionalAction, help=text)
        return
    metavar = option.metavar or ("|".join(option.choices) if option.choices else option.key.split("-")[-1].upper())
    action = "append" if option.many else "store"
    group.add_argument(*flags, dest=option.dest, metavar=metavar, action=action, help=text)


def _default_text(option: Option) -> str:
    if option.required:
        return "required; "
    default, repeatable = option.default, "repeatable; " if option.many else ""
    if default is None or default in ("", ()):
        return repeatable
    if isinstance(default, bool):
        default = "on" if default else "off"
    elif isinstance(default, tuple):
        default = (option.separator or " ").join(map(str, default))
    elif isinstance(default, float):
        default = f"{default:g}"
    return f"default {default}; {repeatable}"
