"""Writes what is to be drained, and follows how far it is: the etcd side of `modelplane drain` and `undrain`.

Invariant: a record is only ever replaced by one that was made from it (compare-and-swap), and an instance is only
drained while those that go on in its place are not to be drained themselves, as etcd knows it at that moment.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import cast

from modelplane.access import FleetConfig, located, silent
from modelplane.draining import Follower, Progress, drain_records
from modelplane.errors import UserError
from modelplane.fleet import Fleet, Picture
from registry.drains import DrainRecord, encode_drain
from registry.etcd import Delete, EtcdClient, Put, Unavailable
from registry.etcd.model import unchanged
from registry.follow import Connection, Snapshot, Update, follow
from registry.keys import DrainKey, Keyspace

_ATTEMPTS = 10
_MOST_COMPARED = 100


@dataclass(frozen=True, slots=True)
class Registry:
    """All of it at one revision. `drains`: by instance; `written`: when each key was last written."""

    picture: Picture
    drains: Mapping[str, DrainRecord]
    written: Mapping[str, int]


class Wishes:
    """One command's connection to etcd."""

    def __init__(self, client: EtcdClient, keyspace: Keyspace, no_answer: UserError) -> None:
        self.keyspace = keyspace
        self._client = client
        self._no_answer = no_answer

    async def change(
        self, instance: str, decide: Callable[[Registry], tuple[DrainRecord | None, Collection[str]]]
    ) -> tuple[DrainRecord | None, Registry]:
        """Replace an instance's record by what `decide` says (None: by nothing). It is asked again if somebody else
        was faster, or wrote a record of the other instances that it names. Returns the new record, and what it was
        decided by. Raises UserError."""
        key = self.keyspace.make(DrainKey(instance))
        for _ in range(_ATTEMPTS):
            registry = await self._read()
            record, others = decide(registry)
            names = [key, *(self.keyspace.make(DrainKey(other)) for other in sorted(others)[:_MOST_COMPARED])]
            compares = [unchanged(name, registry.written.get(name, 0)) for name in names]
            operation = Delete(key) if record is None else Put(key, encode_drain(record))
            async with self._bounded():
                outcome = await self._client.transact(compares, [operation])
            if outcome.succeeded:
                return record, registry
        raise UserError(f"others keep changing what is drained of {instance}; try again")

    async def follow(self, follower: Follower, show: Callable[[Progress], None]) -> None:
        """Return once the follower's goal is reached; `show` is told of each change. Bound it by cancellation."""
        following = cast("AsyncGenerator[Update, None]", follow(self._client, self.keyspace.prefix))
        shown: Progress | None = None
        async with aclosing(following) as updates:
            async for update in updates:
                follower.apply(update, time.monotonic())
                if isinstance(update, Connection):
                    progress = Progress(done=False, waiting=("etcd",)) if not update.connected else shown
                else:
                    if isinstance(update, Snapshot):
                        follower.revisions((await self._read()).written)
                    progress = follower.progress(time.monotonic())
                if progress is not None and progress != shown:
                    shown = progress
                    show(progress)
                if progress is not None and progress.done:
                    return

    async def _read(self) -> Registry:
        fleet = Fleet(self.keyspace)
        async with self._bounded():
            listing = await self._client.list(self.keyspace.prefix)
        entries = {entry.key: entry.value for entry in listing.entries}
        fleet.apply(Snapshot(listing.revision, entries), time.monotonic())
        written = {entry.key: entry.mod_revision for entry in listing.entries}
        return Registry(fleet.picture(time.monotonic()), drain_records(entries, self.keyspace), written)

    @asynccontextmanager
    async def _bounded(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._client.config.timeout):
                yield
        except (TimeoutError, Unavailable):
            raise self._no_answer from None


@asynccontextmanager
async def wishes(config: FleetConfig) -> AsyncIterator[Wishes]:
    """Connect to a fleet's etcd."""
    config, otherwise = located(config)
    async with EtcdClient(config.etcd) as client:
        yield Wishes(client, Keyspace(config.prefix), silent(config, otherwise))
