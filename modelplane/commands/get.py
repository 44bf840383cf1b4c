"""`modelplane get envoys`, `modelplane get instances` and `modelplane get quarantine`."""

from __future__ import annotations

import asyncio
import difflib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from modelplane.access import FleetConfig, read_fleet
from modelplane.commandline import CommandLine
from modelplane.envoys import envoys
from modelplane.errors import FAILURE, OptionError
from modelplane.instances import documents, instances
from modelplane.lines import show
from modelplane.logs import LogOptions, configure
from modelplane.planes import PlaneConfig, Report, ask_all, find_planes
from modelplane.quarantine import all_quarantined

_THINGS = ("envoys", "instances", "quarantine")


@dataclass(frozen=True, slots=True)
class GetConfig:
    """How to print it."""

    output: str = field(
        default="table",
        metadata={
            "short": "-o",
            "choices": ("table", "wide", "json"),
            "help": "table: what matters; wide: a line for each type of resource too; json: all of it",
        },
    )


def command_line() -> CommandLine:
    """The flags."""
    return CommandLine(
        "get",
        [GetConfig, PlaneConfig, FleetConfig, LogOptions],
        usage="envoys|instances|quarantine [options]",
        arguments={
            "WHAT": "envoys; instances: the servers and how busy they are; or quarantine: the resources that an Envoy "
            "refused, and what holds instead"
        },
        description="List what is connected, with what each Envoy (or gRPC client without a proxy) has acknowledged\n"
        "and refused; or what is quarantined. All control planes that the registry names are asked. Instances are\n"
        "listed from the registry alone.\n\n"
        "STATE: `has everything` means that it has acknowledged all that the registry says; `pending CDS 3`, that 3\n"
        "clusters are due, or sent and not answered; `refused CDS 1`, that it does not take one of them.\n"
        "Exit code 1 if a control plane does not answer, for then something may be missing from the list.",
        examples=(
            "modelplane get envoys",
            "modelplane get instances -o wide",
            "modelplane get quarantine",
            "modelplane get envoys -o wide --etcd etcd-0:2379",
            "modelplane get envoys -o json --control-plane plane-0:18080 | jq '.control_planes[].envoys[].node'",
        ),
    )


def run(argv: Sequence[str]) -> int:
    """Print the list."""
    settings = command_line().parse(argv)
    thing = settings.arguments.get("WHAT", "")
    if thing not in _THINGS:
        close = difflib.get_close_matches(thing, _THINGS, n=1)
        said = f"can't get {thing!r}" if thing else "say what to get"
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(_THINGS[:-1])} and {_THINGS[-1]}"
        raise OptionError(f"{said}; {hint}")
    configure(settings[LogOptions].logging)
    if thing == "instances":
        return _instances(settings[FleetConfig], settings[GetConfig].output)
    reports = asyncio.run(_ask(settings[FleetConfig], settings[PlaneConfig], f"/{thing}"))
    output = settings[GetConfig].output
    if output == "json":
        document = {"control_planes": [_document(report) for report in reports]}
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    elif thing == "envoys":
        show(envoys(reports, wide=output == "wide"), sys.stdout)
    else:
        show(all_quarantined(reports), sys.stdout)
    return FAILURE if any(report.error for report in reports) else 0


def _instances(fleet: FleetConfig, output: str) -> int:
    picture = asyncio.run(read_fleet(fleet))
    if output == "json":
        sys.stdout.write(json.dumps({"instances": documents(picture)}, indent=2, ensure_ascii=False) + "\n")
    else:
        show(instances(picture, wide=output == "wide"), sys.stdout)
    return 0


async def _ask(fleet: FleetConfig, config: PlaneConfig, page: str) -> list[Report]:
    return await ask_all(await find_planes(fleet, config), page, config.timeout)


def _document(report: Report) -> dict[str, Any]:
    told = {"replica": report.plane.name, "http": report.plane.http}
    return {**told, "error": report.error} if report.error else {**told, **report.page}
