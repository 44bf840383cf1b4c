"""Two monitors of one instance, and one that stands still, seen by clients: real processes under load."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.etcd import EtcdClient, EtcdConfig
from registry.keys import ClaimKey, Keyspace, ReadyKey
from tests.support import saved_models
from tests.support.load import Load
from tests.support.stack import Stack
from tests.support.waiting import eventually

pytestmark = pytest.mark.scenario

REQUEST = saved_models.predict_request("half_plus_two", [1.0, 2.0, 5.0])
KEY = ReadyKey("half_plus_two", 1, "i")
LEASE = ("--lease-ttl", "2")


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    base = tmp_path / "models" / "half_plus_two"
    saved_models.half_plus_two(base)
    return {"half_plus_two": base}


async def test_a_monitor_that_stood_still_and_then_another_one_at_another_address(
    stack: Stack, models: dict[str, Path]
) -> None:
    """The only instance's monitor is stopped for longer than its lease, and goes on; waits until the registry has lost
    it, and for its return. Then a second one claims the same instance with a server of its own; waits for the first to
    end by itself, once no Envoy sends to its server."""
    first = stack.start_instance("i", models, monitor_flags=LEASE)
    await stack.until_ready(KEY)
    async with (
        EtcdClient(EtcdConfig((stack.etcd.endpoint,))) as client,
        Load(stack.grpc, REQUEST, clients=3, rest=0.02) as load,
    ):
        await _freeze_and_thaw(stack, client, load)
        # Its own ports, its own log: only the name is the same.
        del stack.instances["i"]
        (stack.folder / "i.log").rename(stack.folder / "first.log")
        first.monitor.log = stack.folder / "first.log"
        second = stack.start_instance("i", models, monitor_flags=LEASE)

        async def taken_over() -> bool:
            record = (await stack.registry()).ready.get(KEY)
            return record is not None and record.grpc_port == second.grpc_port

        await eventually(taken_over, "the second one to serve", 60)
        await eventually(lambda: not first.monitor.alive(), "the first one to stop", 60)
        await load.more(50)
    load.assert_all_ok(at_least=200)
    assert first.monitor.wait() == 4
    assert f"(pid {second.monitor.pid}, since " in first.monitor.output.splitlines()[-1]
    assert "no Envoy sends to" in first.monitor.output
    assert second.monitor.alive()


async def _freeze_and_thaw(stack: Stack, client: EtcdClient, load: Load) -> None:
    space, monitor = Keyspace(), stack.instances["i"].monitor
    before = await client.get(space.make(KEY))
    assert before is not None
    monitor.freeze()

    async def lost() -> bool:
        return await client.get(space.make(ClaimKey("i"))) is None

    await eventually(lost, "the lease to end", 15)
    await load.more(50)
    frozen = (await client.list(space.prefix)).revision
    monitor.thaw()
    await stack.until_ready(KEY)
    # etcd itself remembers what hung on which lease at each revision since.
    now = (await client.list(space.prefix)).revision
    for revision in range(frozen, now + 1):
        entries = (await client.list(space.prefix, revision=revision)).entries
        assert before.lease not in {entry.lease for entry in entries}
