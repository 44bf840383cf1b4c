"""Where copies go when instances are lost and come back, and what nonsense in the registry does: real processes, with
an official client asking all the time."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from registry.etcd import EtcdClient, EtcdConfig
from registry.keys import Keyspace, ReadyKey
from registry.records import ReadyState, decode_ready
from tests.support import saved_models
from tests.support.load import Load
from tests.support.operating import Operator, policy
from tests.support.stack import Stack
from tests.support.waiting import eventually

pytestmark = pytest.mark.scenario

ZONES = {"a": "z1", "b": "z1", "c": "z2"}
LEASE = ("--lease-ttl", "2")
JUNK = "{not a record"


@pytest_asyncio.fixture
async def zoned(tmp_path: Path) -> AsyncIterator[Stack]:
    """Three managed instances in two zones; what is lost is placed anew after two seconds more than its lease."""
    stack = Stack(tmp_path, ("--placement-grace", "2", *LEASE))
    try:
        for name, zone in ZONES.items():
            start(stack, name, zone)
        yield stack
    finally:
        stack.close()


def start(stack: Stack, name: str, zone: str) -> None:
    stack.start_managed(name, monitor_flags=("--zone", zone, *LEASE))


async def holders(stack: Stack, model: str, version: int = 1) -> dict[str, int]:
    """The instances that are READY for it, and at which revision they became so."""
    found = {}
    async with EtcdClient(EtcdConfig((stack.etcd.endpoint,))) as client:
        for name in ZONES:
            entry = await client.get(Keyspace().make(ReadyKey(model, version, name)))
            if entry is not None and decode_ready(entry.value).state is ReadyState.READY:
                found[name] = entry.mod_revision
    return found


async def test_a_lost_instances_copies_are_placed_anew_and_nothing_moves_when_it_is_back(zoned: Stack) -> None:
    """Waits for two copies, then, with the server and the monitor of one killed, for the spare instance to have it, and
    for the killed one to be there again and hold a model that comes after it."""
    bases = {name: zoned.folder / "models" / name for name in ("m", "later")}
    for base in bases.values():
        saved_models.half_plus_two(base)
    operator = Operator(zoned.etcd.endpoint, zoned.folder)
    await operator.apply(policy("m", bases["m"], instances={"replicas": 2}), wait=True)
    first = await holders(zoned, "m")
    assert sorted(ZONES[name] for name in first) == ["z1", "z2"], first
    (lost,) = set(first) - {"c"}
    (spare,) = set(ZONES) - set(first)
    async with Load(zoned.grpc, saved_models.predict_request("m", [2.0]), rest=0.01) as load:
        await load.more(100)
        instance = zoned.instances[lost]
        os.kill(instance.server_pid, signal.SIGKILL)
        instance.monitor.kill()
        await until_on(zoned, {"c", spare})
        kept = await holders(zoned, "m")
        assert kept["c"] == first["c"], "the copy that was not lost was touched"
        start(zoned, lost, ZONES[lost])
        wanted = {"replicas": 3}
        await operator.apply(policy("later", bases["later"], instances=wanted), wait=True)
        # The leader has planned with the one that is back: it placed a model there.
        await until_on(zoned, set(ZONES), "later")
        await load.more(100)
        assert await holders(zoned, "m") == kept
    load.assert_all_ok(at_least=300)


async def until_on(stack: Stack, names: set[str], model: str = "m") -> None:
    async def there() -> bool:
        assert set(await holders(stack, model)) == names
        return True

    await eventually(there, f"copies of {model} on {sorted(names)}", 60)


async def test_nonsense_in_the_registry_moves_no_request_and_is_put_right(zoned: Stack) -> None:
    """Waits, after each key that was written over, for the leader to have written it again, or for `why` to name it."""
    base = zoned.folder / "models" / "m"
    for version in (1, 2):
        saved_models.half_plus_two(base, version, b=float(version))
    operator = Operator(zoned.etcd.endpoint, zoned.folder)
    wanted = policy("m", base, versions={"specific": [1, 2]}, traffic={"weights": {"2": 100}})
    await operator.apply(wanted, wait=True)
    before = await holders(zoned, "m", 2)
    assert set(before) == set(ZONES)

    def read(key: str) -> str:
        return zoned.etcd.ctl("get", "--print-value-only", f"/modelplane/{key}").strip()

    async with Load(zoned.grpc, saved_models.predict_request("m", [2.0]), rest=0.01) as load:
        await load.more(50)
        for key in ("traffic/m", "rollouts/m", "assignments/a", "assignments/c"):
            good = json.loads(await asyncio.to_thread(read, key))
            await asyncio.to_thread(zoned.etcd.ctl, "put", f"/modelplane/{key}", JUNK)

            async def mended(key: str = key, good: dict[str, object] = good) -> bool:
                text = await asyncio.to_thread(read, key)
                assert text != JUNK, f"{key} is still what was written over it"
                assert set(json.loads(text)) == set(good)
                return True

            await eventually(mended, f"{key} to be written again")
        await asyncio.to_thread(zoned.etcd.ctl, "put", "/modelplane/models/m", JUNK)

        async def named() -> bool:
            said = await operator.command("why", "m", code=None)
            assert "can't be read" in said.text, said.text
            return True

        await eventually(named, "`why` to say that the policy can't be read")
        await load.more(50)
        await operator.apply(wanted, wait=True)
        await load.more(50)
        assert await holders(zoned, "m", 2) == before
    load.assert_all_ok(at_least=200)
    assert {outcome.version for outcome in load.outcomes} == {2}


async def test_many_apply_while_versions_move(zoned: Stack) -> None:
    """Waits for a move to version 2 that is under way while twelve others change the policy's time-out, and for its
    end."""
    base = zoned.folder / "models" / "m"
    for version in (1, 2):
        saved_models.half_plus_two(base, version, b=float(version))
    operator = Operator(zoned.etcd.endpoint, zoned.folder)
    await operator.apply(policy("m", base, versions={"specific": [1]}), wait=True)
    async with Load(zoned.grpc, saved_models.predict_request("m", [2.0]), rest=0.01) as load:
        await load.more(50)
        await operator.apply(policy("m", base, versions={"specific": [2]}))
        files = []
        for number in range(12):
            folder = zoned.folder / f"operator-{number}"
            folder.mkdir()
            path = folder / "m.yaml"
            path.write_text(json.dumps(policy("m", base, versions={"specific": [2]}, timeout=f"{number + 10}s")))
            files.append(path)
        said = await asyncio.gather(
            *(operator.command("apply", "-f", str(path), "-m", path.parent.name, code=None) for path in files)
        )
        codes = [one.code for one in said]
        assert set(codes) <= {0, 3}, [one.text for one in said]
        assert all("hanged" in one.text for one in said if one.code == 3), [one.text for one in said]
        listed = json.loads((await operator.command("rollout", "history", "m", "-o", "json")).out)
        generations = [one["generation"] for one in listed["history"]]
        assert sorted(generations) == list(range(1, 3 + codes.count(0))), listed
        await operator.command("rollout", "status", "m", "--wait")
        await load.more(50)
    load.assert_all_ok(at_least=150)
    load.assert_versions_never_go_back()
    assert load.outcomes[-1].version == 2
