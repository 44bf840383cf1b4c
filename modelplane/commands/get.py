"""`modelplane get models|versions|instances|envoys|quarantine`."""

from __future__ import annotations

import asyncio
import difflib
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from modelplane.access import FleetConfig, located, read_fleet, watch_fleet
from modelplane.commandline import CommandLine
from modelplane.envoys import envoys
from modelplane.errors import FAILURE, OptionError, UserError
from modelplane.fleet import Picture
from modelplane.instances import documents, instances
from modelplane.listing import Listing, camel_case
from modelplane.logs import LogOptions, configure
from modelplane.planes import PlaneConfig, Report, ask_all, find_planes
from modelplane.policies import tables
from modelplane.policies.view import PolicyView
from modelplane.policies.yaml_backup import as_yaml
from modelplane.quarantine import all_quarantined
from registry.keys import Keyspace

_THINGS = ("models", "versions", "instances", "envoys", "quarantine")
_OF_PLANES = ("envoys", "quarantine")
_POLL = 2.0
"""Seconds between two looks at the control planes with --watch."""


@dataclass(frozen=True, slots=True)
class GetConfig:
    """How to print it."""

    output: str = field(
        default="table",
        metadata={
            "short": "-o",
            "choices": ("table", "wide", "json", "yaml"),
            "help": "table: what matters, in 80 columns; wide: more; json: all of it; yaml: the same, but of "
            "models the policies, as `apply` takes them",
        },
    )
    watch: bool = field(
        default=False, metadata={"short": "-w", "help": "go on and print what changes; with json an object a line"}
    )


def command_line() -> CommandLine:
    """The flags."""
    return CommandLine(
        "get",
        [GetConfig, PlaneConfig, FleetConfig, LogOptions],
        usage=f"{'|'.join(_THINGS)} [NAME] [options]",
        arguments={
            "WHAT": "models: their policies and how far they are; versions; instances: the servers and how busy they "
            "are; envoys: who is connected and has what; quarantine: the resources that an Envoy refused, and what "
            "holds instead",
            "NAME": "only this model, or this instance",
        },
        description="List models, versions and instances as the registry knows them; or what is connected, with what\n"
        "each Envoy (or gRPC client without a proxy) has acknowledged and refused, or what is quarantined, for which\n"
        "all control planes that the registry names are asked.\n\n"
        "STATE of an Envoy: `has everything` means that it has acknowledged all that the registry says;\n"
        "`pending CDS 3`, that 3 clusters are due, or sent and not answered; `refused CDS 1`, that it does not take\n"
        "one of them. Exit code 1 if there is no NAME, or a control plane does not answer, for then something may be\n"
        "missing from the list.",
        examples=(
            "modelplane get models",
            "modelplane get models -o yaml > backup.yaml",
            "modelplane get versions digits --watch",
            "modelplane get instances -o wide",
            "modelplane get envoys -o wide --etcd etcd-0:2379",
            "modelplane get envoys -o json --control-plane plane-0:18080 | jq '.controlPlanes[].envoys[].node'",
        ),
    )


def run(argv: Sequence[str]) -> int:
    """Print the list."""
    settings = command_line().parse(argv)
    thing, name = _thing(settings.arguments.get("WHAT", "")), settings.arguments.get("NAME", "")
    if name and thing in _OF_PLANES:
        raise OptionError(f"get {thing} takes no name, but {name!r} is given")
    configure(settings[LogOptions].logging)
    config, fleet = settings[GetConfig], settings[FleetConfig]
    if thing in _OF_PLANES:
        planes = settings[PlaneConfig]
        return asyncio.run(_print(_polled(fleet, planes, thing, config), config))
    return asyncio.run(_print(_followed(fleet, thing, name, config), config))


def _thing(given: str) -> str:
    thing = next((one for one in _THINGS if given in (one, one.removesuffix("s"))), "")
    if not thing:
        close = difflib.get_close_matches(given, _THINGS, n=1)
        said = f"can't get {given!r}" if given else "say what to get"
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(_THINGS[:-1])} and {_THINGS[-1]}"
        raise OptionError(f"{said}; {hint}")
    return thing


async def _print(listings: AsyncGenerator[Listing, None], config: GetConfig) -> int:
    before: Listing | None = None
    async with aclosing(listings):
        async for listing in listings:
            if not config.watch:
                listing.print(config.output, sys.stdout)
                return FAILURE if listing.failed else 0
            listing.print_changes(before, config.output, sys.stdout)
            before = listing
    return 0


async def _followed(fleet: FleetConfig, thing: str, name: str, config: GetConfig) -> AsyncGenerator[Listing, None]:
    view = PolicyView(Keyspace(located(fleet)[0].prefix))
    make = _MAKERS[thing]
    if not config.watch:
        picture = await read_fleet(fleet, view)
        _check_known(thing, name, picture, view)
        yield make(picture, view, name, config.output == "wide")
        return
    async with aclosing(watch_fleet(fleet, view)) as pictures:
        async for picture in pictures:
            yield make(picture, view, name, config.output == "wide")


def _check_known(thing: str, name: str, picture: Picture, view: PolicyView) -> None:
    models = {*view.kept, *(row.model for row in picture.versions)}
    known = set(picture.instances) if thing == "instances" else models
    if name and name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"the registry knows no {thing.removesuffix('s').replace('version', 'model')} {name!r}{hint}")


def _models(picture: Picture, view: PolicyView, name: str, wide: bool) -> Listing:
    table = tables.models(picture, view, name, wide=wide)
    kept = {model: one for model, one in sorted(view.kept.items()) if name in ("", model)}
    return Listing("models", table.lines(), table.documents, as_yaml(kept))


def _versions(picture: Picture, view: PolicyView, name: str, wide: bool) -> Listing:
    table = tables.versions(picture, view, name, wide=wide)
    return Listing("versions", table.lines(), table.documents)


def _instances(picture: Picture, view: PolicyView, name: str, wide: bool) -> Listing:
    shown = {one: record for one, record in picture.instances.items() if name in ("", one)}
    picture = replace(picture, instances=shown)
    items = dict(zip(shown, documents(picture), strict=True))
    return Listing("instances", instances(picture, wide=wide), items)


_MAKERS: dict[str, Callable[[Picture, PolicyView, str, bool], Listing]] = {
    "models": _models,
    "versions": _versions,
    "instances": _instances,
}


async def _polled(
    fleet: FleetConfig, planes: PlaneConfig, thing: str, config: GetConfig
) -> AsyncGenerator[Listing, None]:
    while True:
        reports = await ask_all(await find_planes(fleet, planes), f"/{thing}", planes.timeout)
        lines = envoys(reports, wide=config.output == "wide") if thing == "envoys" else all_quarantined(reports)
        items = {report.plane.name: _document(report) for report in reports}
        yield Listing("controlPlanes", lines, items, failed=any(report.error for report in reports))
        await asyncio.sleep(_POLL)


def _document(report: Report) -> dict[str, Any]:
    told = {"replica": report.plane.name, "http": report.plane.http}
    return {**told, "error": report.error} if report.error else {**told, **camel_case(report.page)}
