"""follow() on a real etcd, killed, wiped, restored, compacted and frozen: no event lost, none twice, in order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path

import pytest

from registry.etcd import EtcdClient, EtcdConfig, Listing, Put, Unavailable
from registry.follow import Changes, Snapshot, follow
from tests.support.etcd import Etcd, EtcdCluster
from tests.support.following import Followed, following
from tests.support.processes import free_port
from tests.support.relay import Relay
from tests.support.waiting import eventually

PREFIX = "/f/"


@pytest.fixture
async def client(etcd: Etcd) -> AsyncIterator[EtcdClient]:
    async with EtcdClient(EtcdConfig((etcd.endpoint,))) as client:
        yield client


async def until(followed: Followed, state: dict[str, bytes]) -> None:
    def reached() -> bool:
        assert followed.state == state
        return True

    await eventually(reached, f"{len(state)} keys as expected")


@asynccontextmanager
async def stream_of_puts(client: EtcdClient) -> AsyncIterator[dict[int, bytes]]:
    """Put ever new values to one key; yields those that etcd acknowledged, by revision."""
    acknowledged: dict[int, bytes] = {}

    async def put() -> None:
        number = 0
        while True:
            number += 1
            value = b"%d" % number
            with suppress(Unavailable):
                acknowledged[await client.put(PREFIX + "k", value, timeout=1)] = value
            await asyncio.sleep(0.005)

    task = asyncio.create_task(put())
    try:
        yield acknowledged
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def assert_nothing_lost(followed: Followed, acknowledged: dict[int, bytes]) -> None:
    revisions = [changes.revision for changes in followed.changes]
    assert revisions == sorted(set(revisions)), "twice, or out of order"
    delivered = {changes.revision: changes.puts.get(PREFIX + "k") for changes in followed.changes}
    snapshot = next(update for update in followed.updates if isinstance(update, Snapshot))
    missing = [
        revision
        for revision, value in acknowledged.items()
        if revision > snapshot.revision and delivered.get(revision) != value
    ]
    assert len(delivered) > 60
    assert missing == []
    assert not any(changes.relisted for changes in followed.changes)


async def test_snapshot_first_then_one_change_per_revision(client: EtcdClient) -> None:
    await client.put(PREFIX + "a", b"1")
    await client.put("/other", b"-")
    async with following(client, PREFIX) as followed:
        await until(followed, {PREFIX + "a": b"1"})
        revision = (await client.transact((), [Put(PREFIX + "b", b"2"), Put(PREFIX + "c", b"3")])).revision
        await client.put("/other", b"-")
        deleted = await client.delete(PREFIX + "a")
        await until(followed, {PREFIX + "b": b"2", PREFIX + "c": b"3"})
        assert followed.updates == [
            Snapshot(revision - 1, {PREFIX + "a": b"1"}),
            Changes(revision, {PREFIX + "b": b"2", PREFIX + "c": b"3"}, frozenset()),
            Changes(deleted, {}, frozenset({PREFIX + "a"})),
        ]


async def test_etcd_down_at_first_is_said_and_tried_again(tmp_path: Path) -> None:
    etcd = Etcd(tmp_path)
    await asyncio.to_thread(etcd.kill)
    async with EtcdClient(EtcdConfig((etcd.endpoint,), timeout=1)) as client, following(client, PREFIX) as followed:
        await eventually(lambda: followed.connections == [False], "the loss to be said")
        await asyncio.to_thread(etcd.restart)
        await eventually(lambda: followed.snapshots, "the snapshot")
        assert followed.connections == [False, True]
    etcd.close()


async def test_cancelled_while_etcd_is_away_it_ends_at_once() -> None:
    config = EtcdConfig((f"127.0.0.1:{free_port()}",))
    async with EtcdClient(config) as client:
        started = time.monotonic()
        async with following(client, PREFIX):
            await asyncio.sleep(0)
        assert time.monotonic() - started < 2


@pytest.mark.scenario
@pytest.mark.parametrize("times", [3])
async def test_killed_and_restarted_under_a_stream_of_puts(client: EtcdClient, etcd: Etcd, times: int) -> None:
    """etcd is killed and started again; waits until puts made afterwards have been delivered."""
    async with following(client, PREFIX) as followed, stream_of_puts(client) as acknowledged:
        for _ in range(times):
            count = len(acknowledged)
            await eventually(lambda count=count: len(acknowledged) > count + 30, "thirty puts")
            await asyncio.to_thread(etcd.kill)
            await eventually(lambda: not followed.connections or not followed.connections[-1], "the loss to be seen")
            await asyncio.to_thread(etcd.restart)
            count = len(acknowledged)
            await eventually(lambda count=count: len(acknowledged) > count + 30, "thirty puts after the restart")
            await eventually(lambda: followed.connections[-1], "the return to be seen")
        last = max(acknowledged)
        await eventually(lambda: followed.changes[-1].revision >= last, "the last put")
        assert_nothing_lost(followed, {revision: value for revision, value in acknowledged.items() if revision <= last})
        assert followed.connections == [False, True] * times


@pytest.mark.scenario
async def test_compaction_while_away_gives_the_deletions(etcd: Etcd, client: EtcdClient) -> None:
    """The follower reaches etcd by a relay that is closed while keys change and history is compacted."""
    await client.transact((), [Put(PREFIX + name, b"1") for name in ("stays", "goes", "changes")])
    async with cut_off(etcd) as (relay, far), following(far, PREFIX) as followed:
        await eventually(lambda: len(followed.state) == 3, "the snapshot")
        # A change delivered means that the watch runs.
        await client.put(PREFIX + "watched", b"1")
        await eventually(lambda: followed.changes, "the watch")
        await relay.close()
        await client.delete(PREFIX + "goes")
        await client.put(PREFIX + "changes", b"2")
        revision = await client.put(PREFIX + "comes", b"1")
        await asyncio.to_thread(etcd.ctl, "compact", str(revision))
        await relay.open()
        await eventually(lambda: followed.changes[-1].relisted, "the difference")
        assert followed.changes[-1] == Changes(
            revision,
            {PREFIX + "changes": b"2", PREFIX + "comes": b"1"},
            frozenset({PREFIX + "goes"}),
            relisted=True,
        )
        await client.put(PREFIX + "later", b"1")
        await eventually(lambda: PREFIX + "later" in followed.state, "a change after it")


@pytest.mark.scenario
async def test_restarted_empty_gives_the_difference(client: EtcdClient, etcd: Etcd) -> None:
    """etcd comes back with nothing; waits for the deletions and a put afterwards."""
    for number in range(10):
        await client.put(f"{PREFIX}{number}", b"1")
    async with following(client, PREFIX) as followed:
        await eventually(lambda: len(followed.state) == 10, "the snapshot")
        await asyncio.to_thread(etcd.kill)
        await asyncio.to_thread(etcd.restart, empty=True)
        await until(followed, {})
        assert followed.changes[-1].relisted
        await client.put(PREFIX + "new", b"1")
        await until(followed, {PREFIX + "new": b"1"})


@pytest.mark.scenario
async def test_wiped_and_grown_past_the_known_revision_is_noticed(etcd: Etcd, client: EtcdClient) -> None:
    """While the follower is cut off, etcd is wiped and its revision overtakes what the follower knew; cluster id and
    revision look like a continuation. Waits for the follower to hold what etcd holds."""
    await client.put(PREFIX + "old", b"1")
    async with cut_off(etcd) as (relay, far), following(far, PREFIX) as followed:
        await until(followed, {PREFIX + "old": b"1"})
        await relay.close()
        await asyncio.to_thread(etcd.kill)
        await asyncio.to_thread(etcd.restart, empty=True)
        await eventually(lambda: reachable(client), "etcd's return")
        for number in range(20):
            await client.put(f"{PREFIX}{number}", b"2")
        await relay.open()
        await until(followed, {f"{PREFIX}{number}": b"2" for number in range(20)})


class CountsLists(EtcdClient):
    """A real client that knows how often it listed."""

    lists = 0

    async def list(self, prefix: str, *, revision: int = 0) -> Listing:
        self.lists += 1
        return await super().list(prefix, revision=revision)


async def test_a_start_lists_once(etcd: Etcd) -> None:
    """A list of a large registry costs as much as all of etcd's answers after it."""
    async with CountsLists(EtcdConfig((etcd.endpoint,))) as client, following(client, PREFIX) as followed:
        await eventually(lambda: followed.snapshots, "the snapshot")
        await client.put(PREFIX + "a", b"1")
        await until(followed, {PREFIX + "a": b"1"})
        assert client.lists == 1


@pytest.mark.scenario
async def test_wiped_between_the_list_and_the_watch_is_noticed(etcd: Etcd, client: EtcdClient) -> None:
    """etcd is wiped, and grows past the revision of the list, before the follower has come to its watch. Waits for the
    follower to hold what etcd holds."""
    await client.put(PREFIX + "old", b"1")
    async with aclosing(follow(client, PREFIX)) as updates:
        snapshot = await anext(updates)
        assert isinstance(snapshot, Snapshot)
        state = dict(snapshot.entries)
        await asyncio.to_thread(etcd.kill)
        await asyncio.to_thread(etcd.restart, empty=True)
        await eventually(lambda: reachable(client), "etcd's return")
        for number in range(20):
            await client.put(f"{PREFIX}{number}", b"2")
        async with asyncio.timeout(30):
            async for update in updates:
                if isinstance(update, Changes):
                    assert update.relisted
                    state = {key: value for key, value in {**state, **update.puts}.items() if key not in update.deletes}
                    break
        assert state == {f"{PREFIX}{number}": b"2" for number in range(20)}


@pytest.mark.scenario
async def test_restored_from_a_backup_gives_the_difference(client: EtcdClient, etcd: Etcd, tmp_path: Path) -> None:
    """etcd comes back with a former state; waits for the follower to hold that."""
    await client.put(PREFIX + "kept", b"1")
    await client.put(PREFIX + "changed", b"old")
    await asyncio.to_thread(etcd.backup, tmp_path / "backup.db")
    async with following(client, PREFIX) as followed:
        await client.put(PREFIX + "changed", b"new")
        await client.put(PREFIX + "young", b"1")
        await eventually(lambda: PREFIX + "young" in followed.state, "the newest state")
        await asyncio.to_thread(etcd.kill)
        await asyncio.to_thread(etcd.restart_from, tmp_path / "backup.db")
        await until(followed, {PREFIX + "kept": b"1", PREFIX + "changed": b"old"})


@pytest.mark.scenario
async def test_a_frozen_etcd_is_noticed_and_caught_up_with(client: EtcdClient, etcd: Etcd) -> None:
    """SIGSTOP; waits until keepalive finds the connection dead (13 s), then SIGCONT, and for a put afterwards."""
    async with following(client, PREFIX) as followed:
        await eventually(lambda: followed.snapshots, "the snapshot")
        await client.put(PREFIX + "a", b"1")
        await eventually(lambda: followed.changes, "a change, so that the watch runs")
        frozen = time.monotonic()
        etcd.freeze()
        await eventually(lambda: followed.connections == [False], "the freeze to be noticed")
        assert time.monotonic() - frozen < 20
        etcd.thaw()
        await eventually(lambda: followed.connections == [False, True], "the thaw to be noticed")
        await client.put(PREFIX + "b", b"2")
        await until(followed, {PREFIX + "a": b"1", PREFIX + "b": b"2"})
        assert not any(changes.relisted for changes in followed.changes)


@pytest.mark.scenario
async def test_three_members_killed_in_turn_lose_nothing(tmp_path: Path) -> None:
    """The leader of three members is killed and comes back, three times, under a stream of puts; waits until puts made
    after each have been delivered."""
    cluster = await asyncio.to_thread(EtcdCluster, tmp_path)
    try:
        async with EtcdClient(EtcdConfig(cluster.endpoints)) as client:
            await eventually(lambda: reachable(client), "a leader")
            async with following(client, PREFIX) as followed, stream_of_puts(client) as acknowledged:
                for _ in range(3):
                    count = len(acknowledged)
                    await eventually(lambda count=count: len(acknowledged) > count + 20, "twenty puts")
                    leader = await asyncio.to_thread(cluster.leader)
                    await asyncio.to_thread(cluster.kill, leader)
                    count = len(acknowledged)
                    await eventually(lambda count=count: len(acknowledged) > count + 20, "puts without the leader")
                    await asyncio.to_thread(cluster.restart, leader)
                last = max(acknowledged)
                await eventually(lambda: followed.changes[-1].revision >= last, "the last put")
                known = {revision: value for revision, value in acknowledged.items() if revision <= last}
                assert_nothing_lost(followed, known)
    finally:
        await asyncio.to_thread(cluster.close)


@pytest.mark.scenario
async def test_a_watch_leaves_a_member_that_others_have_found_silent(tmp_path: Path) -> None:
    """The member that is watched is frozen. Its connection's pings would tell after 13 s; waits for a put's delivery,
    which a call of the same client that times out there is to bring sooner."""
    cluster = await asyncio.to_thread(EtcdCluster, tmp_path)
    try:
        follower = (await asyncio.to_thread(cluster.leader) + 1) % 3
        order = (cluster.endpoints[follower], *cluster.endpoints)
        async with EtcdClient(EtcdConfig(order, timeout=4)) as client, following(client, PREFIX) as followed:
            await client.put(PREFIX + "a", b"1")
            await eventually(lambda: followed.state, "the watch")
            cluster.freeze(follower)
            frozen = time.monotonic()
            await client.get(PREFIX + "a")
            await client.put(PREFIX + "b", b"2")
            await until(followed, {PREFIX + "a": b"1", PREFIX + "b": b"2"})
            assert time.monotonic() - frozen < 8
            assert followed.connections == [False, True]
            assert not any(changes.relisted for changes in followed.changes)
    finally:
        await asyncio.to_thread(cluster.close)


@pytest.mark.scenario
async def test_a_member_without_quorum_says_so_at_once(tmp_path: Path) -> None:
    """Two of three members are frozen: the third has no leader soon, which a read, a write that was not made, and the
    follower are told. Waits for it, and for the put after the others were woken."""
    cluster = await asyncio.to_thread(EtcdCluster, tmp_path)
    try:
        async with EtcdClient(EtcdConfig(cluster.endpoints[:1], timeout=1)) as client:
            await eventually(lambda: reachable(client), "a leader")
            async with following(client, PREFIX) as followed:
                await client.put(PREFIX + "a", b"1")
                await eventually(lambda: followed.state, "the watch")
                for index in (1, 2):
                    cluster.freeze(index)
                await eventually(lambda: followed.connections == [False], "the loss to be told", 10)
                with pytest.raises(Unavailable, match="no leader") as refused:
                    await client.put(PREFIX + "b", b"1")
                assert not refused.value.sent
                for index in (1, 2):
                    cluster.thaw(index)
                await eventually(lambda: followed.connections == [False, True], "the return to be told")
                await client.put(PREFIX + "b", b"2", timeout=5)
                await until(followed, {PREFIX + "a": b"1", PREFIX + "b": b"2"})
    finally:
        await asyncio.to_thread(cluster.close)


async def reachable(client: EtcdClient) -> bool:
    try:
        await client.get("/")
    except Unavailable:
        return False
    return True


@asynccontextmanager
async def cut_off(etcd: Etcd) -> AsyncIterator[tuple[Relay, EtcdClient]]:
    """A client that can be cut off from etcd."""
    async with Relay(etcd.port) as relay, EtcdClient(EtcdConfig((relay.endpoint,))) as client:
        yield relay, client
