"""follow() collected: everything that it delivered, and the state that results."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress

from registry.etcd import EtcdClient
from registry.follow import Changes, Connection, Snapshot, Update, follow


class Followed:
    """What one follower has seen so far."""

    def __init__(self) -> None:
        self.updates: list[Update] = []
        self.state: dict[str, bytes] = {}

    def take(self, update: Update) -> None:
        self.updates.append(update)
        match update:
            case Snapshot(_, entries):
                assert self.snapshots == 1, "a second Snapshot"
                self.state = dict(entries)
            case Changes(_, puts, deletes):
                self.state.update(puts)
                for key in deletes:
                    del self.state[key]

    @property
    def snapshots(self) -> int:
        return sum(isinstance(update, Snapshot) for update in self.updates)

    @property
    def changes(self) -> list[Changes]:
        return [update for update in self.updates if isinstance(update, Changes)]

    @property
    def connections(self) -> list[bool]:
        return [update.connected for update in self.updates if isinstance(update, Connection)]


@asynccontextmanager
async def following(client: EtcdClient, prefix: str) -> AsyncIterator[Followed]:
    """Follow `prefix` in a task of its own; its failure fails the test."""
    followed = Followed()

    async def collect() -> None:
        async with aclosing(follow(client, prefix)) as updates:
            async for update in updates:
                followed.take(update)

    task = asyncio.create_task(collect())
    try:
        yield followed
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
