"""`modelplane top`."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import cast

from modelplane.access import FleetConfig, located, silent
from modelplane.commandline import CommandLine
from modelplane.errors import UserError
from modelplane.lines import Line, show
from modelplane.logs import LogOptions, configure
from modelplane.rates import Rates, Usage
from modelplane.screen import Screen
from modelplane.top import documents, lines
from registry.etcd import EtcdClient
from registry.follow import Changes, Snapshot, Update, follow
from registry.keys import Keyspace, PlaneTrafficKey
from registry.plane_traffic import Servable, decode_plane_traffic
from registry.records import RecordError

_REFRESH = 1.0
_LONGEST, _LATE = 60.0, 1.0
_NOBODY = (
    "no control plane tells of requests: none runs, it is older than this command, or --statistics-interval is 0; "
    "one that has just started tells after some seconds"
)


@dataclass(frozen=True, slots=True)
class TopConfig:
    """How to print it."""

    output: str = field(
        default="table", metadata={"short": "-o", "choices": ("table", "wide", "json"), "help": "wide: whole names"}
    )
    watch: bool = field(
        default=False, metadata={"short": "-w", "help": "go on, once a second; with json an object a line"}
    )
    seconds: float = field(
        default=6.0,
        metadata={
            "metavar": "SECONDS",
            "help": "without --watch: how long to look, at least; longer where the control planes look more seldom",
        },
    )

    def __post_init__(self) -> None:
        if not 0 < self.seconds < float("inf"):
            raise ValueError(f"--seconds: {self.seconds} is not possible; give more than 0")


def command_line() -> CommandLine:
    """The flags."""
    return CommandLine(
        "top",
        [TopConfig, FleetConfig, LogOptions],
        usage="[MODEL] [options]",
        arguments={"MODEL": "only this model"},
        description="Show how busy each version of each model is, the busiest first, as Envoys tell the control\n"
        "planes: requests and server errors per second, over all Envoys; how long they took, where some are\n"
        "observed (as during a canary; a dash: none was); and how many are in flight.\n\n"
        "VERSION is a dash for requests that name no version, of models of which each server holds one: the\n"
        "instance's own version answers these. docs/statistics.md says what is counted where.",
        examples=(
            "modelplane top",
            "modelplane top -w",
            "modelplane top digits -o json | jq '.servables[].requestsPerSecond'",
        ),
    )


def run(argv: Sequence[str]) -> int:
    """Print it."""
    settings = command_line().parse(argv)
    configure(settings[LogOptions].logging)
    asyncio.run(_show(settings[TopConfig], settings[FleetConfig], settings.arguments.get("MODEL", "")))
    return 0


async def _show(config: TopConfig, fleet: FleetConfig, model: str) -> None:
    fleet, otherwise = located(fleet)
    rates, listed = Rates(), asyncio.Event()
    async with EtcdClient(fleet.etcd) as client:
        taking = asyncio.create_task(_take(client, Keyspace(fleet.prefix), rates, listed))
        taking.add_done_callback(lambda _: listed.set())
        try:
            try:
                async with asyncio.timeout(fleet.etcd.timeout):
                    await listed.wait()
            except TimeoutError:
                raise silent(fleet, otherwise) from None
            await _print(config, rates, model, taking)
        finally:
            taking.cancel()
            await asyncio.wait({taking})


async def _take(client: EtcdClient, keyspace: Keyspace, rates: Rates, listed: asyncio.Event) -> None:
    updates = cast("AsyncGenerator[Update, None]", follow(client, keyspace.planes))
    async with aclosing(updates):
        async for update in updates:
            match update:
                case Snapshot(entries=puts):
                    _apply(keyspace, rates, puts)
                    listed.set()
                case Changes(puts=puts, deletes=deletes):
                    for raw in deletes:
                        if isinstance(key := keyspace.parse(raw), PlaneTrafficKey):
                            rates.apply(key.replica, None, time.monotonic())
                    _apply(keyspace, rates, puts)


def _apply(keyspace: Keyspace, rates: Rates, puts: Mapping[str, bytes]) -> None:
    for raw, value in puts.items():
        if isinstance(key := keyspace.parse(raw), PlaneTrafficKey):
            try:
                record = decode_plane_traffic(value)
            except RecordError:
                # Somebody wrote nonsense; the last good record is the better thing to show.
                continue
            rates.apply(key.replica, record, time.monotonic())


async def _print(config: TopConfig, rates: Rates, model: str, taking: asyncio.Task[None]) -> None:
    screen = Screen(sys.stdout, live=config.watch and config.output != "json" and sys.stdout.isatty())
    once = max(config.seconds, min(_LONGEST, rates.longest_step + _LATE))
    while True:
        await asyncio.wait({taking}, timeout=_REFRESH if config.watch else once)
        if taking.done():
            taking.result()
        if not rates.known and not config.watch:
            raise UserError(_NOBODY)
        usage = {one: row for one, row in rates.usage(time.monotonic()).items() if model in ("", one[0])}
        if screen.live:
            screen.block([line.text for line in _lines(usage, config, rates)])
        elif config.output == "json":
            _dump(usage, whole=not config.watch)
        else:
            show([*_lines(usage, config, rates), *([Line("")] if config.watch else [])], sys.stdout)
        if not config.watch:
            return


def _lines(usage: Mapping[Servable, Usage], config: TopConfig, rates: Rates) -> list[Line]:
    if not rates.known:
        return [Line(_NOBODY)]
    if not usage:
        return [Line("No requests so far.")]
    return lines(usage, whole=config.output == "wide")


def _dump(usage: Mapping[Servable, Usage], *, whole: bool) -> None:
    document = {"at": round(time.time(), 3), "servables": documents(usage)}
    sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=2 if whole else None) + "\n")
    sys.stdout.flush()
