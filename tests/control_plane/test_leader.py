"""The leader on a real etcd: who leads, what it writes, and that nobody who leads no more writes anything."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from control_plane.election import Election
from control_plane.leader import Figures, Leader, Means
from control_plane.leading import Leading, LeadingConfig
from registry.assignments import decode_assignment
from registry.etcd import EtcdClient, EtcdConfig
from registry.events import decode_event
from registry.follow import follow
from registry.found import Found, FoundModel, encode_found
from registry.keys import (
    AssignmentKey,
    DiskKey,
    InstanceKey,
    Keyspace,
    LeaderKey,
    PolicyKey,
    ReadyKey,
    RolloutKey,
    TrafficKey,
)
from registry.leaders import LeaderRecord, decode_leader, encode_leader
from registry.policy.stored import StoredPolicy, encode_stored
from registry.records import (
    Condition,
    InstanceRecord,
    InstanceState,
    ReadyRecord,
    ReadyState,
    encode_instance,
    encode_ready,
)
from registry.rollouts import Phase, decode_rollout
from registry.traffic import decode_traffic
from tests.support.etcd import Etcd
from tests.support.planned_fleet import document
from tests.support.processes import ChildProcess, free_port
from tests.support.waiting import eventually

SPACE = Keyspace()
READY = encode_ready(ReadyRecord(ReadyState.READY, "127.0.0.1", 1, several_versions=True))


@pytest.fixture
async def client(etcd: Etcd) -> AsyncIterator[EtcdClient]:
    async with EtcdClient(EtcdConfig((etcd.endpoint,))) as client:
        yield client


@asynccontextmanager
async def leading(client: EtcdClient, name: str, ttl: float = 2.0, grace: float = 30.0) -> AsyncIterator[Leading]:
    """A replica's part in deciding, without the rest of it."""
    one = Leading(LeadingConfig(placement_grace=grace), SPACE, name, ttl, frozenset)
    one.may_stand()

    async def hear() -> None:
        async for update in follow(client, SPACE.prefix):
            one.heard(update)

    tasks = [asyncio.create_task(one.run(client)), asyncio.create_task(hear())]
    try:
        yield one
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
        await one.close()


async def registers(client: EtcdClient, name: str, versions: Mapping[str, tuple[int, ...]], **how: Any) -> None:
    """A managed instance with these files."""
    record = InstanceRecord("127.0.0.1", 1, state=InstanceState.SERVING, managed=True, **how)
    found = {model: FoundModel(f"/models/{model}", dict.fromkeys(there, 100)) for model, there in versions.items()}
    await client.put(SPACE.make(DiskKey(name)), encode_found(Found(found)))
    await client.put(SPACE.make(InstanceKey(name)), encode_instance(record))


async def applies(client: EtcdClient, model: str, generation: int = 1, **spec: Any) -> None:
    stored = StoredPolicy(document(model, **spec), generation, time.time())
    await client.put(SPACE.make(PolicyKey(model)), encode_stored(stored))


async def assigned(client: EtcdClient, name: str) -> dict[str, tuple[int, ...]]:
    entry = await client.get(SPACE.make(AssignmentKey(name)))
    return {m: one.versions for m, one in decode_assignment(entry.value).models.items()} if entry else {}


async def weights(client: EtcdClient, model: str) -> Mapping[int, int]:
    entry = await client.get(SPACE.make(TrafficKey(model)))
    return dict(decode_traffic(entry.value).weights) if entry else {}


async def leader(client: EtcdClient) -> str:
    entry = await client.get(SPACE.make(LeaderKey()))
    return decode_leader(entry.value).replica if entry else ""


async def until(what: str, condition: Any, expected: Any, timeout: float = 20.0) -> None:
    async def reached() -> bool:
        return bool(await condition() == expected)

    await eventually(reached, what, timeout)


async def test_a_policy_is_carried_out_from_files_to_traffic(client: EtcdClient) -> None:
    """Waits for each assignment, answers it with readiness, and in the end for the switch and the unloading."""
    async with leading(client, "p"):
        await registers(client, "i0", {"m": (1,)})
        await applies(client, "m")
        await until("version 1 to be assigned", lambda: assigned(client, "i0"), {"m": (1,)})
        await client.put(SPACE.make(ReadyKey("m", 1, "i0")), READY)
        await until("version 1 to answer", lambda: weights(client, "m"), {1: 1})
        await registers(client, "i0", {"m": (1, 2)})
        await until("version 2 beside it", lambda: assigned(client, "i0"), {"m": (1, 2)})
        assert await weights(client, "m") == {1: 1}
        await client.put(SPACE.make(ReadyKey("m", 2, "i0")), READY)
        await until("the switch", lambda: weights(client, "m"), {2: 1})
        await until("version 1 to go", lambda: assigned(client, "i0"), {"m": (2,)})
        await until("the end", lambda: phase(client, "m"), Phase.DONE)
        # They are for people, so nothing waits for them.
        await until("the last event", lambda: said(client, "RolloutDone", 2), True)
        events = [decode_event(entry.value) for entry in (await client.list(SPACE.events)).entries]
        assert [one.kind for one in events if one.version == 2] == ["RolloutStarted", "VersionSwitched", "RolloutDone"]
        assert {one.by for one in events} == {"leader p"}
        (lease,) = {entry.lease for entry in (await client.list(SPACE.events)).entries}
        assert 23 * 3600 < (await client.time_to_live(lease)).ttl <= 24 * 3600


async def phase(client: EtcdClient, model: str) -> Phase | None:
    entry = await client.get(SPACE.make(RolloutKey(model)))
    return decode_rollout(entry.value).phase if entry else None


async def test_one_of_several_leads_and_another_at_once_when_it_stops(client: EtcdClient) -> None:
    """With leases of ten minutes, so that only the resignation can be it; waits for the second to lead and decide."""
    async with leading(client, "b", 600) as second:
        await until("b to lead", lambda: leader(client), "b")
        async with leading(client, "c", 600) as third:
            await eventually(lambda: third.leader == "b", "c to know it")
            await second.close()
            # It stands still, and may win again.
            await eventually(lambda: third.leader != "" and second.leader == third.leader, "one of them to lead")
            await registers(client, "i0", {"m": (1,)})
            await applies(client, "m")
            await until("it to decide", lambda: assigned(client, "i0"), {"m": (1,)})


async def test_etcd_wiped_under_the_leader(client: EtcdClient, etcd: Etcd) -> None:
    """Waits for the lead to be taken anew, and for what registers then to be planned."""
    async with leading(client, "p"):
        await registers(client, "i0", {"m": (1,)})
        await applies(client, "m")
        await until("an assignment", lambda: assigned(client, "i0"), {"m": (1,)})
        etcd.kill()
        etcd.restart(empty=True)
        await until("p to lead again", lambda: leader(client), "p")
        assert await assigned(client, "i0") == {}
        await registers(client, "i1", {"m": (1,)})
        await applies(client, "m")
        await until("an assignment", lambda: assigned(client, "i1"), {"m": (1,)})


async def test_the_leaders_key_deleted_by_hand(client: EtcdClient) -> None:
    async with leading(client, "p", 600):
        await until("p to lead", lambda: leader(client), "p")
        await client.delete(SPACE.make(LeaderKey()))
        await until("p to lead again", lambda: leader(client), "p")
        await registers(client, "i0", {"m": (1,)})
        await applies(client, "m")
        await until("an assignment", lambda: assigned(client, "i0"), {"m": (1,)})


async def test_a_leader_that_does_not_know_that_another_leads_writes_nothing(client: EtcdClient) -> None:
    """It has no watch that could tell it, and its lease lasts for ten minutes. Waits for it to try to write."""
    election = Election(client, SPACE.make(LeaderKey()), "old", 600)
    leader_of_old = Leader(Means(client, SPACE, election, "old"), Figures())
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(election.run()), tasks.create_task(leader_of_old.run())]
        await until("it to lead", lambda: leader(client), "old")
        await client.delete(SPACE.make(LeaderKey()))
        await client.put(SPACE.make(LeaderKey()), encode_leader(LeaderRecord("new")))
        await registers(client, "i0", {"m": (1,)})
        await applies(client, "m")
        await eventually(lambda: election.leader == "new", "it to know better")
        assert await decided(client) == {}
        for task in running:
            task.cancel()


async def test_who_leads_no_more_tells_of_no_rollouts(client: EtcdClient) -> None:
    figures, election = Figures(), Election(client, SPACE.make(LeaderKey()), "old", 600)
    old = Leader(Means(client, SPACE, election, "old"), figures)
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(election.run()), tasks.create_task(old.run())]
        await registers(client, "i0", {"m": (1,)})
        await applies(client, "m")
        await applies(client, "nowhere")
        await eventually(lambda: figures.rollouts.keys() == {"m", "nowhere"}, "both rollouts to be told")
        assert (figures.leads, figures.waiting) == (True, 1)
        await client.delete(SPACE.make(LeaderKey()))
        await client.put(SPACE.make(LeaderKey()), encode_leader(LeaderRecord("new")))
        # It learns of that when it writes, as above.
        await applies(client, "other")
        await eventually(lambda: not figures.leads, "it to know that another one leads")
        assert (figures.waiting, figures.rollouts) == (0, {})
        for task in running:
            task.cancel()


@pytest.fixture
def planes(tmp_path: Path, etcd: Etcd) -> Iterator[dict[str, ChildProcess]]:
    started: dict[str, ChildProcess] = {}
    try:
        for name in ("a", "b"):
            started[name] = ChildProcess(
                [
                    *(sys.executable, "-m", "modelplane", "control-plane", "--etcd", etcd.endpoint, "--replica", name),
                    *("--xds-listen", f"127.0.0.1:{free_port()}", "--http-listen", f"127.0.0.1:{free_port()}"),
                    *("--empty-registry-grace", "0", "--lease-ttl", "2", "--placement-grace", "4"),
                ],
                tmp_path / f"{name}.log",
            )
        yield started
    finally:
        for child in started.values():
            child.thaw()
            child.stop()


@pytest.mark.scenario
async def test_a_leader_that_was_frozen_writes_nothing(client: EtcdClient, planes: dict[str, ChildProcess]) -> None:
    """The leader is stopped (SIGSTOP) when it is about to place a lost instance's model elsewhere, and goes on when the
    other has long done so. Waits for it to say that it leads no more; nothing but the replicas' own records and the
    new leader's keys may have been written since."""
    await registers(client, "i0", {"m": (1,)})
    await applies(client, "m", instances={"replicas": 1})
    await until("an assignment", lambda: assigned(client, "i0"), {"m": (1,)})
    await client.put(SPACE.make(ReadyKey("m", 1, "i0")), READY)
    await until("the end", lambda: phase(client, "m"), Phase.DONE)
    first = await leader(client)
    second = "b" if first == "a" else "a"
    await registers(client, "i1", {"m": (1,)})
    # Its monitor's own word, and no lost lease: there is nothing to doubt.
    for key in (ReadyKey("m", 1, "i0"), DiskKey("i0"), InstanceKey("i0")):
        await client.delete(SPACE.make(key))
    await until("it to have seen that", lambda: said(client, "InstanceLost"), True)
    planes[first].freeze()
    await until("the other one to lead", lambda: leader(client), second)
    await until("the other one to place it", lambda: assigned(client, "i1"), {"m": (1,)})
    await client.put(SPACE.make(ReadyKey("m", 1, "i1")), READY)
    await until("the lost copy to be given up", lambda: assigned(client, "i0"), {})
    await until("the last word on it", lambda: said(client, "ModelRemoved"), True)
    before = await decided(client)
    planes[first].thaw()
    await eventually(lambda: "leads no more" in planes[first].output, "the first to know it")
    assert await decided(client) == before
    assert await leader(client) == second
    # The second stops, and the first goes on where that was.
    planes[second].stop()
    await until("the first to lead again", lambda: leader(client), first, 5)
    await registers(client, "i1", {"m": (1, 2)})
    await until("it to decide", lambda: assigned(client, "i1"), {"m": (1, 2)})


async def said(client: EtcdClient, kind: str, version: int | None = None) -> bool:
    events = [decode_event(entry.value) for entry in (await client.list(SPACE.events)).entries]
    return any((one.kind, one.version) == (kind, version) for one in events)


async def decided(client: EtcdClient) -> dict[str, int]:
    """All that leaders write, with the revision of each key's last write."""
    prefixes = (SPACE.assignments, SPACE.traffic, SPACE.rollouts, SPACE.events)
    return {entry.key: entry.mod_revision for one in prefixes for entry in (await client.list(one)).entries}


async def test_a_copy_that_its_instance_gave_up_goes_to_another(client: EtcdClient) -> None:
    """Waits for the leader to place it, and for it to place it anew."""
    for name in ("i0", "i1"):
        await registers(client, name, {"m": (1,)})
    await applies(client, "m", instances={"replicas": 1})
    async with leading(client, "p"):
        await until("the copy to be placed", lambda: assigned(client, "i0"), {"m": (1,)})
        failed = (Condition("LoadFailed", "model m version 1: no such op", "m", 1, final=True),)
        await registers(client, "i0", {"m": (1,)}, conditions=failed)
        await until("the copy to be moved", lambda: assigned(client, "i1"), {"m": (1,)})
        assert await assigned(client, "i0") == {}
        entry = await client.get(SPACE.make(RolloutKey("m")))
        assert entry is not None
        assert decode_rollout(entry.value).tried == {"i0": (1,)}
