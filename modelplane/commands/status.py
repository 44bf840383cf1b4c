"""`modelplane status`."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Sequence

from modelplane.access import FleetConfig, read_fleet
from modelplane.commandline import CommandLine
from modelplane.logs import LogOptions, configure
from modelplane.table import table


def command_line() -> CommandLine:
    """The flags."""
    return CommandLine(
        "status",
        [FleetConfig, LogOptions],
        description="Show models, versions and instances once, and why something is not served.",
        examples=("modelplane status", "modelplane status --etcd etcd-0:2379"),
    )


def run(argv: Sequence[str]) -> int:
    """Print the table."""
    settings = command_line().parse(argv)
    configure(settings[LogOptions].logging)
    picture = asyncio.run(read_fleet(settings[FleetConfig]))
    # Whoever reads it through a pipe wants the whole lines.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
    sys.stdout.write("\n".join(table(picture, width)) + "\n")
    return 0
