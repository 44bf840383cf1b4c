"""`modelplane events [MODEL]`."""

from __future__ import annotations

import asyncio
import json
import sys
import textwrap
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import cast

from modelplane.access import FleetConfig, located, silent
from modelplane.commandline import CommandLine
from modelplane.commands.rollout_history import when
from modelplane.lines import Line, block, show, terminal_width
from modelplane.logs import LogOptions, configure
from modelplane.table import clean
from registry.etcd import EtcdClient, Unavailable
from registry.events import Event, decode_event
from registry.follow import Changes, Snapshot, Update, follow
from registry.keys import EventKey, Keyspace
from registry.records import RecordError


@dataclass(frozen=True, slots=True)
class EventsConfig:
    """How to print them."""

    watch: bool = field(default=False, metadata={"short": "-w", "help": "go on and print what happens"})
    output: str = field(
        default="table",
        metadata={"short": "-o", "choices": ("table", "json"), "help": "json: one object a line, oldest first"},
    )


def command_line() -> CommandLine:
    """The flags."""
    return CommandLine(
        "events",
        [EventsConfig, FleetConfig, LogOptions],
        usage="[MODEL] [options]",
        arguments={"MODEL": "only what is about this model"},
        description="Tell what happened in the last 24 hours, oldest first: policies applied, versions switched,\n"
        "canaries stepped and rolled back, models placed, instances lost. Times are UTC.",
        examples=("modelplane events", "modelplane events digits --watch", "modelplane events -o json | jq .kind"),
    )


def run(argv: Sequence[str]) -> int:
    """Print them."""
    settings = command_line().parse(argv)
    configure(settings[LogOptions].logging)
    config = settings[EventsConfig]
    return asyncio.run(_events(settings[FleetConfig], config, settings.arguments.get("MODEL", "")))


async def _events(fleet: FleetConfig, config: EventsConfig, model: str) -> int:
    fleet, otherwise = located(fleet)
    keyspace = Keyspace(fleet.prefix)
    async with EtcdClient(fleet.etcd) as client:
        try:
            async with asyncio.timeout(fleet.etcd.timeout):
                listing = await client.list(keyspace.events)
        except (TimeoutError, Unavailable):
            raise silent(fleet, otherwise) from None
        known = _of({entry.key: entry.value for entry in listing.entries}, keyspace, model)
        if config.output == "table":
            lines = _lines(known)
            show(lines or [Line("Nothing happened in the last 24 hours.")], sys.stdout)
        else:
            _print(known, config)
        if config.watch:
            await _watch(client, keyspace, config, model, set(known))
    return 0


async def _watch(client: EtcdClient, keyspace: Keyspace, config: EventsConfig, model: str, known: set[str]) -> None:
    async with aclosing(cast("AsyncGenerator[Update, None]", follow(client, keyspace.events))) as updates:
        async for update in updates:
            match update:
                case Snapshot(entries=puts) | Changes(puts=puts):
                    new = {key: event for key, event in _of(puts, keyspace, model).items() if key not in known}
                    known.update(new)
                    _print(new, config)


_HEAD = ("TIME", "KIND", "ABOUT", "TEXT")


def _of(entries: Mapping[str, bytes], keyspace: Keyspace, model: str) -> dict[str, Event]:
    """Oldest first; what can't be read is left out."""
    events: dict[str, Event] = {}
    for key, value in sorted(entries.items()):
        if isinstance(keyspace.parse(key), EventKey):
            try:
                event = decode_event(value)
            except RecordError:
                continue
            if model in ("", event.model):
                events[key] = event
    return events


def _cells(event: Event) -> tuple[str, ...]:
    version = "" if event.version is None else f"@{event.version}"
    about = " on ".join(part for part in (f"{event.model}{version}", event.instance) if part)
    # Of whom else; that the leader did what leaders do is in the JSON.
    by = f" (by {event.by})" if event.by and not event.by.startswith("leader ") else ""
    return when(event.at), event.kind, about or "-", f"{event.text}{by}"


def _lines(events: Mapping[str, Event]) -> list[Line]:
    """A table, with what an event says below it where the terminal is too narrow for both."""
    if not events:
        return []
    head, *rows = block(_HEAD, [_cells(event) for event in events.values()])[1:]
    pairs = zip(rows, events.values(), strict=True)
    return [head, *(line for row, event in pairs for line in _folded(row.text, event))]


def _folded(row: str, event: Event) -> list[Line]:
    width = terminal_width(sys.stdout)
    if len(row) <= width:
        return [Line(row)]
    at, *_, text = (clean(cell).rstrip() for cell in _cells(event))
    indent = " " * (len(at) + 2)
    pieces = textwrap.wrap(text, max(20, width - len(indent)), break_on_hyphens=False)
    return [Line(row[: len(row) - len(text)].rstrip()), *(Line(f"{indent}{piece}") for piece in pieces)]


def _print(events: Mapping[str, Event], config: EventsConfig) -> None:
    if config.output == "table":
        show([line for event in events.values() for line in _folded("  ".join(_cells(event)), event)], sys.stdout)
        return
    for event in events.values():
        document = {
            "at": event.at,
            "kind": event.kind,
            "model": event.model or None,
            "version": event.version,
            "instance": event.instance or None,
            "text": event.text,
            "by": event.by or None,
        }
        sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
    sys.stdout.flush()
