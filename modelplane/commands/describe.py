"""`modelplane describe model NAME`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from modelplane.access import FleetConfig, located, read_fleet
from modelplane.commandline import CommandLine
from modelplane.description import Pages, describe, find
from modelplane.errors import OptionError, UserError
from modelplane.fleet import Picture
from modelplane.lines import Line, Tone, show
from modelplane.logs import LogOptions, configure
from modelplane.planes import (
    NO_PLANE,
    Plane,
    PlaneConfig,
    Report,
    ask_all,
    ask_first,
    find_planes,
    named_planes,
    resource_page,
)
from modelplane.policies.view import PolicyView
from registry.keys import Keyspace


def command_line() -> CommandLine:
    """The flags."""
    return CommandLine(
        "describe",
        [PlaneConfig, FleetConfig, LogOptions],
        usage="model NAME [options]",
        arguments={"model": "a model of the fleet", "NAME": "its name, as clients spell it"},
        description="Tell all about one model: its policy, its versions and which is served, each instance's state\n"
        "and why it is not ready, its clusters in Envoy, and what an Envoy refused of them: field, message, and what\n"
        "holds now. Exit code 1 if there is no such model.",
        examples=("modelplane describe model digits", "modelplane describe model digits --etcd etcd-0:2379"),
    )


def run(argv: Sequence[str]) -> int:
    """Print the description."""
    settings = command_line().parse(argv)
    kind, name = (settings.arguments.get(key, "") for key in ("model", "NAME"))
    if kind != "model":
        said = f"{kind!r} can't be described" if kind else "say what"
        raise OptionError(f"{said}: `modelplane describe model NAME`")
    if not name:
        raise OptionError("say which model: `modelplane describe model NAME`; `modelplane status` lists them")
    configure(settings[LogOptions].logging)
    show(asyncio.run(_describe(settings[FleetConfig], settings[PlaneConfig], name)), sys.stdout)
    return 0


async def _describe(fleet: FleetConfig, config: PlaneConfig, model: str) -> list[Line]:
    view = PolicyView(Keyspace(located(fleet)[0].prefix))
    picture = await read_fleet(fleet, view)
    find(picture, model, view.kept)
    lines = describe(picture, model, await _pages(fleet, config, picture, model), view)
    return lines if config.control_plane or picture.planes else [*lines, Line(""), Line(NO_PLANE, Tone.BAD)]


async def _pages(fleet: FleetConfig, config: PlaneConfig, picture: Picture, model: str) -> Pages:
    if not (config.control_plane or picture.planes):
        return Pages()
    planes = await find_planes(fleet, config) if config.control_plane else named_planes(picture)
    envoys, quarantine = await asyncio.gather(
        ask_all(planes, "/envoys", config.timeout), ask_all(planes, "/quarantine", config.timeout)
    )
    answering = [report.plane for report in envoys if not report.error]
    return Pages(quarantine, envoys, await _resources(answering, model, config.timeout))


async def _resources(planes: Sequence[Plane], model: str, timeout: float) -> dict[str, Report] | None:
    try:
        return {one: await ask_first(planes, resource_page(one, model=model), timeout) for one in ("CDS", "EDS")}
    except UserError:
        # Why they don't answer is told of each anyway.
        return None
