"""Drains during which something else fails. Envoy would retry a request whose server was stopped under it, so that no
client may tell; therefore it is Envoy's retries that are counted."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from bench.drain.__main__ import measure, parser
from registry.etcd import EtcdClient, EtcdConfig
from registry.keys import DrainKey, Keyspace, ReadyKey
from tests.support import saved_models
from tests.support.load import Load
from tests.support.processes import ChildProcess
from tests.support.stack import Stack
from tests.support.waiting import eventually

pytestmark = pytest.mark.scenario

SECONDS = 6.0
"""Of one request: longer than a control plane takes to start, so that some are in flight all the while."""


@pytest.fixture
async def draining(stack: Stack, tmp_path: Path) -> AsyncIterator[ChildProcess]:
    """The monitor of one of two instances, just told to stop under requests of SECONDS. In the end none of them may
    have failed or been sent twice."""
    base = tmp_path / "models" / "slow"
    saved_models.slow(base, seconds=SECONDS)
    for name in "ab":
        stack.start_instance(name, {"slow": base})
    await stack.until_ready(*(ReadyKey("slow", 1, name) for name in "ab"))
    async with Load(stack.grpc, saved_models.predict_request("slow", [1.0]), clients=8, rest=0, timeout=60) as load:
        # One of each client has been answered, so each has another in flight.
        await load.more(8)
        monitor = stack.instances["a"].monitor
        monitor.send(signal.SIGTERM)
        await eventually(lambda: "draining, for at most" in monitor.output, "the drain to begin")
        yield monitor
        await eventually(lambda: not monitor.alive(), "the drained monitor to end", 40)
        await load.more(8)
    load.assert_all_ok(at_least=16)
    assert "drained in" in monitor.output
    retries = stack.envoy.stats("upstream_rq_retry")
    assert retries
    assert not [name for name, count in retries.items() if name.endswith("upstream_rq_retry") and count], retries


async def test_the_control_plane_is_restarted_during_a_drain(stack: Stack, draining: ChildProcess) -> None:
    """Waits for the control plane to end and start again; it takes its record away, and so all that is waited for."""
    await asyncio.to_thread(stack.plane.stop)
    assert draining.alive()
    stack.start_plane()


async def test_etcd_is_restarted_empty_during_a_drain(stack: Stack, draining: ChildProcess) -> None:
    """Waits for etcd to start again, without the drain, the instance and the control plane."""
    stack.etcd.kill()
    stack.etcd.restart(empty=True)
    assert draining.alive()


async def command(stack: Stack, *arguments: str, expect: int = 0) -> str:
    """Run a command to its end; what it said."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "modelplane", *arguments, "--etcd", stack.etcd.endpoint),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await child.communicate()
    assert child.returncode == expect, output.decode()
    return output.decode()


async def test_an_operator_drains_takes_back_and_stops(stack: Stack, tmp_path: Path) -> None:
    """Waits for each command, which waits for the drain; then for a monitor that starts again to hold what was wanted,
    and for one that was stopped to serve again. Nobody's request fails or is sent twice meanwhile."""
    base = tmp_path / "models" / "half"
    saved_models.slow(base, seconds=0.05)
    for name in "ab":
        stack.start_instance(name, {"half": base})
    on_a, on_b = (ReadyKey("half", 1, name) for name in "ab")
    await stack.until_ready(on_a, on_b)
    async with Load(stack.grpc, saved_models.predict_request("half", [1.0]), clients=3) as load:
        await load.more(5)
        assert "a drained in" in await command(stack, "drain", "a", "--message", "new disk")
        assert "--force" in await command(stack, "drain", "b", expect=1)
        status = await command(stack, "status")
        assert "ready on b; drained on a" in status
        assert "new disk" in status
        a = stack.instances["a"]
        a.monitor.send(signal.SIGTERM)
        await eventually(lambda: not a.monitor.alive(), "the monitor to end")
        stack.start_instance("a", {"half": base})

        async def state() -> str:
            picture = await stack.registry()
            return str(picture.instances["a"].state) if "a" in picture.instances and on_a in picture.ready else "away"

        await eventually(lambda: _is(state, "DRAINED"), "it to be drained still", 60)
        assert "a is back" in await command(stack, "undrain", "a")
        await stack.until_ready(on_a, on_b)
        assert "half@1 drained in" in await command(stack, "drain", "a", "--model", "half@1")
        assert (await stack.registry()).ready[on_a].state == "DRAINED"
        await command(stack, "undrain", "a", "--model", "half")
        await stack.until_ready(on_a, on_b)
        assert "a stopped in" in await command(stack, "drain", "a", "--stop")
        await eventually(lambda: not stack.instances["a"].monitor.alive(), "the stopped monitor to end")
        async with EtcdClient(EtcdConfig((stack.etcd.endpoint,))) as client:
            assert await client.get(Keyspace().make(DrainKey("a"))) is None
        await load.more(5)
    load.assert_all_ok(at_least=10)
    retries = stack.envoy.stats("upstream_rq_retry")
    assert not [name for name, count in retries.items() if name.endswith("upstream_rq_retry") and count], retries


async def _is(state: Callable[[], Awaitable[str]], wanted: str) -> bool:
    return await state() == wanted


@pytest.mark.parametrize("way", ["stop", "model"])
async def test_drains_under_load_touch_no_request(tmp_path: Path, way: str) -> None:
    """Waits for drains again and again, of instances and of a model of theirs, with requests of up to 2 s in flight."""
    args = parser().parse_args(["--way", way, "--drains", "12", "--instances", "4", "--clients", "6"])
    result = await measure(tmp_path, args)
    assert result.faults == 0, result
    assert len(result.rows) >= 12
