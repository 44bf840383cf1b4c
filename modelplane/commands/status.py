"""`modelplane status`."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from modelplane.commandline import CommandLine
from modelplane.errors import UserError
from modelplane.fleet import Fleet, Picture
from modelplane.local.folder import running_stack
from modelplane.logs import LogOptions, configure
from modelplane.table import table
from registry.etcd import EtcdClient, EtcdConfig
from registry.follow import Snapshot, Update, follow
from registry.keys import DEFAULT_PREFIX, Keyspace


@dataclass(frozen=True, slots=True)
class StatusConfig:
    """Which fleet to show."""

    state: Path = field(
        default=Path(".modelplane"),
        metadata={
            "metavar": "FOLDER",
            "help": "of a `modelplane up` that runs on this machine: shows its fleet, unless --etcd names another",
        },
    )
    prefix: str = field(
        default=DEFAULT_PREFIX, metadata={"metavar": "PREFIX", "help": "prefix of the fleet's keys in etcd"}
    )
    etcd: EtcdConfig = field(default_factory=EtcdConfig)


def command_line() -> CommandLine:
    """The flags."""
    return CommandLine(
        "status",
        [StatusConfig, LogOptions],
        description="Show models, versions and instances once, and why something is not served.",
        examples=("modelplane status", "modelplane status --etcd etcd-0:2379"),
    )


def run(argv: Sequence[str]) -> int:
    """Print the table."""
    settings = command_line().parse(argv)
    configure(settings[LogOptions].logging)
    config = settings[StatusConfig]
    otherwise = "; is it running there? Choose another with --etcd"
    if config.etcd.endpoints == EtcdConfig().endpoints and config.prefix == DEFAULT_PREFIX:
        stack = running_stack(config.state)
        if stack is not None:
            config = replace(config, etcd=replace(config.etcd, endpoints=(stack.etcd,)), prefix=stack.prefix)
        else:
            otherwise = f", and no `modelplane up` has its state in {config.state}; choose with --etcd or --state"
    picture = asyncio.run(_read(config, otherwise))
    # Whoever reads it through a pipe wants the whole lines.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
    sys.stdout.write("\n".join(table(picture, width)) + "\n")
    return 0


async def _read(config: StatusConfig, otherwise: str) -> Picture:
    keyspace = Keyspace(config.prefix)
    fleet = Fleet(keyspace)
    try:
        async with (
            asyncio.timeout(config.etcd.timeout),
            EtcdClient(config.etcd) as client,
            aclosing(cast("AsyncGenerator[Update, None]", follow(client, keyspace.prefix))) as updates,
        ):
            async for update in updates:
                fleet.apply(update, time.monotonic())
                if isinstance(update, Snapshot):
                    break
    except TimeoutError:
        raise UserError(f"etcd at {', '.join(config.etcd.addresses)} doesn't answer{otherwise}") from None
    return fleet.picture(time.monotonic())
