"""`modelplane status`."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from modelplane.access import FleetConfig, located, read_fleet
from modelplane.commandline import CommandLine
from modelplane.envoys import unreachable
from modelplane.fleet import Picture
from modelplane.logs import LogOptions, configure
from modelplane.lost_leases import lost_leases, told
from modelplane.planes import NO_PLANE, PlaneConfig, Report, ask_all, find_planes, named_planes
from modelplane.policies.view import PolicyView
from modelplane.table import clean, fit, table
from registry.keys import Keyspace


def command_line() -> CommandLine:
    """The flags."""
    return CommandLine(
        "status",
        [FleetConfig, PlaneConfig, LogOptions],
        description="Show models, versions and instances once, why something is not served, and which instances\n"
        "the control planes use on although their leases are lost.",
        examples=("modelplane status", "modelplane status --etcd etcd-0:2379"),
    )


def run(argv: Sequence[str]) -> int:
    """Print the table."""
    settings = command_line().parse(argv)
    configure(settings[LogOptions].logging)
    view = PolicyView(Keyspace(located(settings[FleetConfig])[0].prefix))
    picture, reports = asyncio.run(_read(settings[FleetConfig], settings[PlaneConfig], view))
    # Whoever reads it through a pipe wants the whole lines.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
    lines = table(picture, width, view.kept)
    lines += [fit(clean(line), width) for line in lost_leases(reports, picture.planes, time.time())]
    lines += [fit(clean(line.text), width) for line in unreachable(reports)]
    lines += ["", fit(clean(_leader(picture)), width)] if picture.planes else []
    lines += [] if reports or picture.planes else ["", fit(NO_PLANE, width)]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _leader(picture: Picture) -> str:
    if picture.leader is None:
        return "LEADER  none: no control plane carries out policies, everything goes on as it was"
    since = datetime.fromtimestamp(picture.leader.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"LEADER  {picture.leader.replica}, since {since}"


async def _read(fleet: FleetConfig, config: PlaneConfig, view: PolicyView) -> tuple[Picture, list[Report]]:
    picture = await read_fleet(fleet, view)
    if not (config.control_plane or picture.planes):
        return picture, []
    planes = await find_planes(fleet, config) if config.control_plane else named_planes(picture)
    return picture, told(await ask_all(planes, "/guard", config.timeout))
