"""compose.yaml on a real engine, with the load from outside of the containers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.compose import Compose, compose_or_skip
from tests.support.docker_engine import engine_or_skip
from tests.support.load import Load
from tests.support.saved_models import predict_request
from tests.support.waiting import eventually

CRASHED = ("serving", "control-plane-0", "control-plane-1", "etcd-0", "etcd-1", "etcd-2")


@pytest.fixture
def compose(tmp_path: Path) -> Iterator[Compose]:
    program = compose_or_skip()
    engine = engine_or_skip()
    try:
        if not engine.own:
            pytest.skip("the engine is borrowed: the processes of its containers are not ours to kill")
        compose = Compose(engine, program, tmp_path)
        try:
            yield compose
        finally:
            compose.close()
    finally:
        engine.close()


@pytest.mark.asyncio
async def test_any_one_container_is_lost_and_instances_come_and_go_under_load(compose: Compose) -> None:
    steps: list[str] = []
    began = time.monotonic()

    def step(name: str) -> None:
        nonlocal began
        steps.append(f"{name}: {time.monotonic() - began:.1f} s")
        print(steps[-1], flush=True)
        began = time.monotonic()

    await asyncio.to_thread(compose.build)
    step("images")
    await asyncio.to_thread(compose, "up", "-d", "--wait", "--no-build")
    step("up")
    first = compose.containers("serving")
    assert len(first) == 2

    async with Load(f"127.0.0.1:{compose.port}", predict_request("half_plus_two", [1.0]), rest=0.01) as load:
        await load.more(50)
        step("load")
        for service in CRASHED:
            await compose.crash(compose.containers(service)[0])
            step(f"{service} crashed and came back")
            load.assert_all_ok()

        await asyncio.to_thread(compose, "up", "-d", "--wait", "--no-build", "--no-recreate", "--scale", "serving=4")
        step("four instances are healthy")
        four = compose.containers("serving")
        assert len(four) == 4

        before = {container: compose.received(container) for container in four}
        await load.more(200)

        def all_share() -> bool:
            received = [compose.received(container) - before[container] for container in four]
            return min(received) > sum(received) / 10

        await eventually(all_share, "each of four instances gets its share", 20)
        step("they share the load")
        await asyncio.to_thread(compose, "up", "-d", "--no-build", "--no-recreate", "--scale", "serving=2")
        step("two drained and gone")
        assert len(compose.containers("serving")) == 2
        await load.more(200)
    load.assert_all_ok(at_least=1000)
    step(f"{len(load.outcomes)} requests")

    # Envoy apart: it is the one address.
    await compose.crash(compose.containers("envoy")[0])
    step("envoy crashed and came back")
    async with Load(f"127.0.0.1:{compose.port}", predict_request("half_plus_two", [1.0])) as load:
        await load.more(20)
    load.assert_all_ok(at_least=20)

    await asyncio.to_thread(compose, "down", "-v", "--timeout", "10")
    step("down")
    assert compose("ps", "-q", "-a") == ""
    assert not compose.engine.api.volumes()["Volumes"]
