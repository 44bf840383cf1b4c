"""LeasedKeys on a real etcd: whatever becomes of the lease or of etcd, its keys are back within one TTL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from registry.etcd import EtcdClient, EtcdConfig
from registry.leased import LeasedKeys
from tests.support.etcd import Etcd, EtcdCluster
from tests.support.following import following
from tests.support.relay import Relay
from tests.support.waiting import eventually

PREFIX = "/l/"
TTL = 3.0


@pytest.fixture
async def client(etcd: Etcd) -> AsyncIterator[EtcdClient]:
    async with EtcdClient(EtcdConfig((etcd.endpoint,))) as client:
        yield client


@asynccontextmanager
async def leased(client: EtcdClient, ttl: float = TTL) -> AsyncIterator[LeasedKeys]:
    keys = LeasedKeys(client, ttl)
    task = asyncio.create_task(keys.run())
    try:
        yield keys
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def stored(client: EtcdClient) -> dict[str, bytes]:
    return {entry.key.removeprefix(PREFIX): entry.value for entry in (await client.list(PREFIX)).entries}


async def until(client: EtcdClient, expected: dict[str, bytes], timeout: float = 30.0) -> None:
    async def reached() -> bool:
        assert await stored(client) == expected
        return True

    await eventually(reached, "etcd to hold what was set", timeout)


async def until_back(client: EtcdClient, expected: dict[str, bytes]) -> None:
    """From now on, within one TTL (and what a busy machine takes)."""
    await until(client, expected, TTL + 1)


async def test_one_set_is_one_revision_and_flush_says_which(client: EtcdClient) -> None:
    async with leased(client) as keys, following(client, PREFIX) as followed:
        assert not keys.held
        keys.set({PREFIX + "a": b"1", PREFIX + "b": b"1"})
        first = await keys.flush()
        assert keys.held
        await eventually(lambda: followed.state, "the follower")
        keys.set({PREFIX + "a": b"2", PREFIX + "b": None, PREFIX + "c": b"1"})
        second = await keys.flush()
        await eventually(lambda: PREFIX + "c" in followed.state, "the follower")
        change = followed.changes[-1]
        assert change.revision == second > first
        assert change.puts == {PREFIX + "a": b"2", PREFIX + "c": b"1"}
        assert change.deletes == {PREFIX + "b"}
        assert await keys.flush() == second


async def test_more_keys_than_a_transaction_holds(client: EtcdClient) -> None:
    expected = {str(number): bytes(10_000) for number in range(500)}
    async with leased(client) as keys:
        keys.set({PREFIX + name: value for name, value in expected.items()})
        await keys.flush()
        assert await stored(client) == expected


async def test_close_takes_the_keys_away_at_once(client: EtcdClient) -> None:
    async with leased(client, ttl=60) as keys:
        keys.set({PREFIX + "a": b"1"})
        await keys.flush()
        await keys.close()
        assert await stored(client) == {}
        keys.set({PREFIX + "b": b"1"})
        with pytest.raises(RuntimeError, match="flush after close"):
            await keys.flush()


async def test_a_writer_that_dies_is_forgotten_after_its_ttl(client: EtcdClient) -> None:
    async with leased(client, ttl=2) as keys:
        keys.set({PREFIX + "a": b"1"})
        await keys.flush()
    await until(client, {}, timeout=10)


async def test_set_before_etcd_is_up(tmp_path: Path) -> None:
    etcd = Etcd(tmp_path)
    await asyncio.to_thread(etcd.kill)
    async with EtcdClient(EtcdConfig((etcd.endpoint,))) as client, leased(client) as keys:
        keys.set({PREFIX + "a": b"1"})
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await keys.flush()
        await asyncio.to_thread(etcd.restart)
        await keys.flush()
        assert await stored(client) == {"a": b"1"}
    await asyncio.to_thread(etcd.close)


async def test_a_lease_revoked_behind_its_back(client: EtcdClient) -> None:
    async with leased(client) as keys:
        keys.set({PREFIX + "a": b"1"})
        await keys.flush()
        entry = await client.get(PREFIX + "a")
        assert entry is not None
        await client.revoke(entry.lease)
        await until_back(client, {"a": b"1"})


async def test_a_lost_lease_is_noticed_by_the_next_write(client: EtcdClient) -> None:
    async with leased(client, ttl=600) as keys:
        keys.set({PREFIX + "a": b"1"})
        await keys.flush()
        entry = await client.get(PREFIX + "a")
        assert entry is not None
        assert keys.regranted_at is None, "the first lease is no replacement"
        before = time.monotonic()
        await client.revoke(entry.lease)
        keys.set({PREFIX + "b": b"1"})
        await keys.flush()
        assert await stored(client) == {"a": b"1", "b": b"1"}
        assert keys.regranted_at is not None
        assert before <= keys.regranted_at <= time.monotonic()


async def test_keys_deleted_or_changed_by_hand_are_repaired(client: EtcdClient) -> None:
    async with leased(client) as keys:
        keys.set({PREFIX + "a": b"1", PREFIX + "b": b"1", PREFIX + "c": b"1"})
        await keys.flush()
        await client.delete(PREFIX + "a")
        await client.put(PREFIX + "b", b"nonsense")
        await until_back(client, {"a": b"1", "b": b"1", "c": b"1"})


@pytest.mark.scenario
async def test_etcd_restarted_empty(client: EtcdClient, etcd: Etcd) -> None:
    """etcd is killed and comes back with nothing; waits for the keys to be back."""
    async with leased(client) as keys:
        keys.set({PREFIX + "a": b"1", PREFIX + "b": b"1"})
        await keys.flush()
        await asyncio.to_thread(etcd.kill)
        await asyncio.to_thread(etcd.restart, empty=True)
        await until_back(client, {"a": b"1", "b": b"1"})


@pytest.mark.scenario
async def test_etcd_restarted_with_its_data_writes_nothing_again(client: EtcdClient, etcd: Etcd) -> None:
    """etcd is killed and comes back at once; waits for a later write, and finds no other in between."""
    async with leased(client) as keys:
        keys.set({PREFIX + "a": b"1"})
        before = await keys.flush()
        await asyncio.to_thread(etcd.kill)
        await asyncio.to_thread(etcd.restart)
        keys.set({PREFIX + "b": b"1"})
        assert await keys.flush() == before + 1
        assert await stored(client) == {"a": b"1", "b": b"1"}


@pytest.mark.scenario
async def test_etcd_frozen_for_longer_than_the_lease(client: EtcdClient, etcd: Etcd) -> None:
    """SIGSTOP until the lease has run out for both sides, then SIGCONT; waits for the keys, on a new lease."""
    async with leased(client, ttl=2) as keys:
        keys.set({PREFIX + "a": b"1"})
        await keys.flush()
        before = await client.get(PREFIX + "a")
        assert before is not None
        etcd.freeze()
        await eventually(lambda: not keys.held, "the deadline")
        passed = time.monotonic()
        await eventually(lambda: time.monotonic() - passed > 2, "etcd's own deadline")
        assert not keys.held
        keys.set({PREFIX + "b": b"1"})
        etcd.thaw()
        await until_back(client, {"a": b"1", "b": b"1"})
        await keys.flush()
        after = await client.get(PREFIX + "a")
        assert after is not None
        assert after.lease != before.lease
        assert keys.held


@pytest.mark.scenario
async def test_a_writer_frozen_for_longer_than_its_lease(client: EtcdClient) -> None:
    """The writer's event loop stands still until etcd has dropped the keys; waits for them to be back."""
    async with leased(client, ttl=2) as keys:
        keys.set({PREFIX + "a": b"1"})
        await keys.flush()
        stood_still = time.monotonic()
        while time.monotonic() - stood_still < 4:
            time.sleep(0.1)  # noqa: ASYNC251  (it is the point)
        assert not keys.held
        keys.set({PREFIX + "b": b"1"})
        await keys.flush()
        assert await stored(client) == {"a": b"1", "b": b"1"}


@pytest.mark.scenario
async def test_etcd_restored_from_a_backup_that_knows_the_lease(client: EtcdClient, etcd: Etcd, tmp_path: Path) -> None:
    """etcd comes back with former values, with keys deleted since and without keys set since; waits for it to hold what
    was set, and for flush to name a revision that the restored etcd has reached."""
    async with leased(client, ttl=20) as keys:
        keys.set({PREFIX + "kept": b"1", PREFIX + "changed": b"old", PREFIX + "deleted": b"1"})
        await keys.flush()
        await asyncio.to_thread(etcd.backup, tmp_path / "backup.db")
        keys.set({PREFIX + "changed": b"new", PREFIX + "deleted": None})
        keys.set({PREFIX + "young": b"1"})
        await keys.flush()
        await asyncio.to_thread(etcd.kill)
        await asyncio.to_thread(etcd.restart_from, tmp_path / "backup.db")
        await until(client, {"kept": b"1", "changed": b"new", "young": b"1"}, timeout=8)
        assert await keys.flush() <= (await client.list(PREFIX)).revision


@pytest.mark.scenario
async def test_an_etcd_that_takes_long_to_answer(etcd: Etcd, client: EtcdClient) -> None:
    """Each answer takes longer than a third of the lease, which is what a call is given at first. Waits for a set, and
    for as long as a lease lasts, in which no key may go."""
    async with (
        Relay(etcd.port) as relay,
        EtcdClient(EtcdConfig((relay.endpoint,))) as far,
        following(client, PREFIX) as followed,
    ):
        # Its connection is there already: what is slow is a disk, say.
        await far.get(PREFIX)
        relay.delay = 1.3
        async with leased(far, ttl=TTL) as keys:
            keys.set({PREFIX + "a": b"1"})
            await keys.flush()
            registered = time.monotonic()
            await eventually(lambda: time.monotonic() - registered > TTL + 1, "a lease's time")
            assert keys.held
            assert followed.state == {PREFIX + "a": b"1"}
            assert not any(changes.deletes for changes in followed.changes)


@pytest.mark.scenario
async def test_the_leader_of_three_members_is_killed(tmp_path: Path) -> None:
    """The leader is killed for good; waits for a set made afterwards, and finds the lease alive and no key missing
    meanwhile."""
    cluster = await asyncio.to_thread(EtcdCluster, tmp_path)
    try:
        async with EtcdClient(EtcdConfig(cluster.endpoints)) as client, leased(client, ttl=10) as keys:
            keys.set({PREFIX + "a": b"1"})
            await keys.flush()
            async with following(client, PREFIX) as followed:
                await eventually(lambda: followed.state, "the snapshot")
                await asyncio.to_thread(cluster.kill, await asyncio.to_thread(cluster.leader))
                keys.set({PREFIX + "b": b"1"})
                await keys.flush()
                await eventually(lambda: PREFIX + "b" in followed.state, "the follower")
                assert [sorted(changes.deletes) for changes in followed.changes] == [[]] * len(followed.changes)
                assert keys.held
    finally:
        await asyncio.to_thread(cluster.close)
