"""design.md's failure table, on real processes under real load: what fails, and what clients see of it. All that may
happen to etcd is in test_outages.py."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from pathlib import Path

import grpc
import pytest

from registry.keys import ReadyKey
from tests.support import saved_models
from tests.support.load import Load
from tests.support.stack import Stack
from tests.support.waiting import eventually

pytestmark = pytest.mark.scenario

REQUEST = saved_models.predict_request("half_plus_two", [1.0, 2.0, 5.0])
LEASE = 10.0


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    base = tmp_path / "models" / "half_plus_two"
    saved_models.half_plus_two(base)
    return {"half_plus_two": base}


async def start(stack: Stack, models: dict[str, Path], names: str) -> None:
    for name in names:
        stack.start_instance(name, models)
    await stack.until_ready(*keys(names))


def keys(names: str) -> list[ReadyKey]:
    return [ReadyKey("half_plus_two", 1, name) for name in names]


def metric(stack: Stack, name: str) -> float:
    """The sum over its labels of a metric of the control plane."""
    with urllib.request.urlopen(f"http://127.0.0.1:{stack.http_port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def held(stack: Stack) -> dict[str, str]:
    """The instances that the control plane uses on without their leases, with the reason."""
    with urllib.request.urlopen(f"http://127.0.0.1:{stack.http_port}/guard", timeout=5) as answer:
        return {one["instance"]: one["held"] for one in json.load(answer)["suspects"]}


async def answered_by(stack: Stack) -> dict[str, int]:
    """How many requests each instance has answered, as Envoy counts them."""
    rows = [line.split("::") for line in stack.envoy.admin("/clusters").splitlines()]
    totals: dict[str, int] = {}
    for row in rows:
        if len(row) == 4 and row[2] == "rq_success" and not row[0].startswith("@"):
            totals[row[1]] = totals.get(row[1], 0) + int(row[3])
    return {name: totals.get(instance.grpc, 0) for name, instance in stack.instances.items()}


async def test_a_killed_server_costs_no_request_and_takes_part_again(stack: Stack, models: dict[str, Path]) -> None:
    """Waits for the registry to drop the killed instance, and for the restarted one to answer its share."""
    await start(stack, models, "abc")
    async with Load(stack.grpc, REQUEST, clients=6) as load:
        await load.more(200)
        os.kill(stack.instances["b"].server_pid, signal.SIGKILL)

        async def gone() -> bool:
            return keys("b")[0] not in (await stack.registry()).ready

        await eventually(gone, "the killed instance to leave the registry")
        await load.more(200)
        stack.instances["b"].monitor.wait()
        stack.start_instance("b", models)
        await stack.until_ready(*keys("abc"))
        before = await answered_by(stack)
        await load.more(300)
        after = await answered_by(stack)
    load.assert_all_ok(at_least=700)
    assert all(after[name] - before[name] > 30 for name in "abc"), (before, after)


async def test_the_control_plane_killed_and_restarted(stack: Stack, models: dict[str, Path]) -> None:
    """Waits for Envoy to be connected to the new control plane, and for that to have settled."""
    await start(stack, models, "ab")
    async with Load(stack.grpc, REQUEST, rest=0.01) as load:
        await load.more(100)
        stack.plane.kill()
        await load.more(100)
        stack.start_plane()
        await eventually(lambda: metric(stack, "modelplane_envoys") == 1, "Envoy to come back")
        await eventually(lambda: metric(stack, "modelplane_converged_revision") > 0, "convergence to be claimed")
        await load.more(100)
    load.assert_all_ok(at_least=300)
    assert metric(stack, "modelplane_resources") > 0
    assert metric(stack, "modelplane_xds_sent_total") == 0
    assert metric(stack, "modelplane_xds_removed_total") == 0


async def test_etcd_wiped_while_the_control_plane_restarts(stack: Stack, models: dict[str, Path]) -> None:
    """The new control plane finds an empty registry and an Envoy that knows better; the monitors are held up until it
    has read it. Waits until it serves Envoy, and every key is back."""
    await start(stack, models, "ab")
    async with Load(stack.grpc, REQUEST, rest=0.01) as load:
        await load.more(50)
        for instance in stack.instances.values():
            instance.monitor.freeze()
        stack.plane.kill()
        stack.etcd.kill()
        stack.etcd.restart(empty=True)
        read = stack.plane.output.count("registry read")
        stack.start_plane()
        await eventually(lambda: stack.plane.output.count("registry read") > read, "the empty registry to be read")
        await load.more(100)
        for instance in stack.instances.values():
            instance.monitor.thaw()
        await eventually(lambda: metric(stack, "modelplane_envoys") == 1, "Envoy to be served")
        await stack.until_ready(*keys("ab"))
        await load.more(100)
    load.assert_all_ok(at_least=200)
    assert metric(stack, "modelplane_xds_removed_total") == 0


async def test_sigterm_to_a_monitor_under_load_of_slow_requests(stack: Stack, tmp_path: Path) -> None:
    """Requests of 300 ms on both instances; one is told to stop. Waits for its monitor to end by itself."""
    base = tmp_path / "models" / "slow"
    saved_models.slow(base, seconds=0.3)
    for name in "ab":
        stack.start_instance(name, {"slow": base})
    await stack.until_ready(*(ReadyKey("slow", 1, name) for name in "ab"))
    async with Load(stack.grpc, saved_models.predict_request("slow", [1.0]), clients=8, rest=0) as load:
        await load.more(20)
        monitor = stack.instances["a"].monitor
        monitor.send(signal.SIGTERM)
        await eventually(lambda: not monitor.alive(), "the drained monitor to end")
        await load.more(20)
    load.assert_all_ok(at_least=40)
    assert "drained in" in monitor.output
    assert not [key for key in (await stack.registry()).ready if key.instance == "a"]


async def test_a_killed_monitor_is_not_noticed_by_clients(stack: Stack, models: dict[str, Path]) -> None:
    """Its server serves on, and is used on for as long as it answers; waits until the lease has run out and the grace
    time after it has passed."""
    await start(stack, models, "abc")
    server = stack.instances["c"].server_pid
    async with Load(stack.grpc, REQUEST, rest=0.02) as load:
        stack.instances["c"].monitor.kill()

        async def left() -> bool:
            return not any(key.instance == "c" for key in (await stack.registry()).ready)

        await eventually(left, "the lease to run out", 3 * LEASE)
        await eventually(lambda: held(stack) == {"c": "it answers its checks"}, "the grace time", 3 * LEASE)
        before = (await answered_by(stack))["c"]
        await load.more(50)
        assert (await answered_by(stack))["c"] > before
    os.kill(server, signal.SIGKILL)
    load.assert_all_ok(at_least=300)


async def test_envoy_restarted_opens_its_port_with_everything_known(stack: Stack, models: dict[str, Path]) -> None:
    """Clients see the refused connection of a proxy that is gone, never the NOT_FOUND of one that knows nothing yet.
    Waits for the new Envoy to answer."""
    await start(stack, models, "ab")
    async with Load(stack.grpc, REQUEST, rest=0.002) as load:
        await load.more(100)

        def back_for(count: int) -> bool:
            return all(outcome.code is grpc.StatusCode.OK for outcome in load.outcomes[-count:])

        stack.envoy.child.kill()
        await eventually(lambda: load.failures, "clients to notice")
        stack.start_envoy()
        await stack.envoy.ready()
        await eventually(lambda: back_for(100), "every client to be back")
    assert {outcome.code for outcome in load.failures} <= {grpc.StatusCode.UNAVAILABLE}
    assert not [outcome for outcome in load.failures if "No instance" in outcome.details]
