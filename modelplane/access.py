"""How a command finds a fleet: through etcd, or the state folder of a `modelplane up` that names its etcd."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, cast

from modelplane.errors import UserError
from modelplane.fleet import Fleet, Picture
from modelplane.local.folder import running_stack
from registry.etcd import EtcdClient, EtcdConfig
from registry.follow import Snapshot, Update, follow
from registry.keys import DEFAULT_PREFIX, Keyspace

_TOGETHER = 0.1
"""Seconds within which changes are shown as one."""


@dataclass(frozen=True, slots=True)
class FleetConfig:
    """Which fleet to look at."""

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


def located(config: FleetConfig) -> tuple[FleetConfig, str]:
    """The same with the etcd of a `modelplane up`, where that is what is meant; and what to say if it is silent."""
    if config.etcd.endpoints != EtcdConfig().endpoints or config.prefix != DEFAULT_PREFIX:
        return config, "; is it running there? Choose another with --etcd"
    stack = running_stack(config.state)
    if stack is None:
        return config, f", and no `modelplane up` has its state in {config.state}; choose with --etcd or --state"
    etcd = replace(config.etcd, endpoints=(stack.etcd,))
    return replace(config, etcd=etcd, prefix=stack.prefix), "; is it running there? Choose another with --etcd"


def silent(config: FleetConfig, otherwise: str) -> UserError:
    """What to raise if etcd does not answer; both as `located` says."""
    return UserError(f"etcd at {', '.join(config.etcd.addresses)} doesn't answer{otherwise}")


class Reader(Protocol):
    """Takes the registry's updates in."""

    def apply(self, update: Update) -> None:
        """Take one in."""
        ...


async def read_fleet(config: FleetConfig, *readers: Reader) -> Picture:
    """The fleet as it is now; `readers` are given the same registry. Raises UserError where etcd doesn't answer."""
    config, otherwise = located(config)
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
                for reader in readers:
                    reader.apply(update)
                if isinstance(update, Snapshot):
                    break
    except TimeoutError:
        raise silent(config, otherwise) from None
    return fleet.picture(time.monotonic())


async def watch_fleet(config: FleetConfig, *readers: Reader) -> AsyncGenerator[Picture, None]:
    """The fleet as it is now, and again after each change, for ever; changes that come close together are one. Raises
    UserError where etcd doesn't answer at first."""
    await read_fleet(config)
    config, _ = located(config)
    keyspace = Keyspace(config.prefix)
    fleet = Fleet(keyspace)
    changed = asyncio.Event()

    async def take(client: EtcdClient) -> None:
        listed = False
        async for update in follow(client, keyspace.prefix):
            fleet.apply(update, time.monotonic())
            for reader in readers:
                reader.apply(update)
            listed = listed or isinstance(update, Snapshot)
            if listed:
                changed.set()

    async with EtcdClient(config.etcd) as client:
        taking = asyncio.create_task(take(client))
        taking.add_done_callback(lambda _: changed.set())
        try:
            while True:
                await changed.wait()
                await asyncio.sleep(_TOGETHER)
                changed.clear()
                if taking.done():
                    taking.result()
                yield fleet.picture(time.monotonic())
        finally:
            taking.cancel()
            await asyncio.wait({taking})
