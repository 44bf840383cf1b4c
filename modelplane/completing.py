"""What may stand next on a command line, out of each command's own parser. Invariant: it never fails and never waits
longer than a second, whatever was typed and whatever etcd does: then it knows less."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import Sequence
from pathlib import Path

from modelplane.access import FleetConfig, located
from modelplane.cli import COMMANDS
from modelplane.commandline import CommandLine
from modelplane.commands.rollout import VERBS
from modelplane.errors import UserError
from modelplane.options import Option
from registry.etcd import EtcdClient, EtcdError
from registry.keys import InstanceKey, Keyspace, PolicyKey, ReadyKey

FILES = ":files"
"""Alone: the shell may complete the name of a file."""
SHELLS = ("bash", "zsh", "fish")
_SECONDS = 1.0
_WORDS = {
    "WHAT": ("models", "versions", "instances", "envoys", "quarantine"),
    "model": ("model",),
    "SHELL": SHELLS,
}
"""What the arguments of this name may be; MODEL, NAME and INSTANCE are looked up in the registry."""


def candidates(words: Sequence[str]) -> list[str]:
    """What the last of these words may become; `words` follow `modelplane`."""
    if not words:
        return []
    *before, typed = words
    return sorted(one for one in _all(before, typed) if one.startswith(typed) or one == FILES)


def _all(before: Sequence[str], typed: str) -> Sequence[str]:
    if not before:
        return list(COMMANDS)
    line, rest = _command_line(before)
    if line is None:
        return list(VERBS) if before == ["rollout"] else []
    if "--" in rest:
        return [FILES]
    options = {flag: option for option in line.options for flag in (option.flag, option.short) if flag}
    valued = options.get(rest[-1]) if rest else None
    if rest and rest[-1] == "--config":
        return [FILES]
    if valued is not None and valued.kind is not bool:
        return _values(valued)
    if typed.startswith("-"):
        return _flags(line)
    return _arguments(line, rest, _positional(rest, options))


def _command_line(before: Sequence[str]) -> tuple[CommandLine | None, list[str]]:
    """Of the command that the words begin with; and the words after it."""
    name, *rest = before
    module = COMMANDS[name].module if name in COMMANDS else ""
    if module == "rollout":
        verb, *rest = rest or [""]
        module = VERBS[verb][0] if verb in VERBS else ""
    if not module:
        return None, rest
    make = getattr(importlib.import_module(f"modelplane.commands.{module}"), "command_line", None)
    return (make() if make else None), rest


def _values(option: Option) -> Sequence[str]:
    return option.choices or ([FILES] if option.kind is Path or option.short == "-f" else [])


def _flags(line: CommandLine) -> list[str]:
    return [flag for action in line.parser._actions for flag in action.option_strings if flag.startswith("--")]


def _positional(rest: Sequence[str], options: dict[str, Option]) -> list[str]:
    """The words that are neither flags nor their values."""
    found, valued = [], False
    for word in rest:
        option = options.get(word)
        if not valued and not word.startswith("-"):
            found.append(word)
        valued = not valued and ((option is not None and option.kind is not bool) or word == "--config")
    return found


def _arguments(line: CommandLine, rest: Sequence[str], given: Sequence[str]) -> Sequence[str]:
    if len(given) >= len(line.arguments):
        return []
    name = line.arguments[len(given)]
    if name in _WORDS:
        return _WORDS[name]
    if name == "INSTANCE" or (name == "NAME" and given[:1] in (["instances"], ["instance"])):
        return _names(line, rest, instances=True)
    return _names(line, rest, instances=False) if name in ("MODEL", "NAME") else []


def _names(line: CommandLine, rest: Sequence[str], *, instances: bool) -> list[str]:
    """Out of the registry, for as long as it takes."""
    with contextlib.suppress(UserError, EtcdError, TimeoutError, OSError):
        return asyncio.run(_ask(line.parse(rest)[FleetConfig], instances=instances))
    return []


async def _ask(fleet: FleetConfig, *, instances: bool) -> list[str]:
    fleet, _ = located(fleet)
    keyspace = Keyspace(fleet.prefix)
    names: set[str] = set()
    async with asyncio.timeout(_SECONDS), EtcdClient(fleet.etcd) as client:
        for prefix in (keyspace.instances,) if instances else (keyspace.models, keyspace.ready):
            for entry in (await client.list(prefix)).entries:
                match keyspace.parse(entry.key):
                    case InstanceKey(name) | PolicyKey(name) | ReadyKey(name):
                        names.add(name)
    # A name with a line break in it can't be told to a shell.
    return [name for name in names if name.isprintable()]
