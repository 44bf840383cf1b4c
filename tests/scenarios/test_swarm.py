"""control_plane/swarm.yaml on a real engine, a swarm of one node, with the load from outside of the containers. Only
with SWARM=1 in the environment, for it takes minutes. One stack for all; each test begins and ends with all of it
healthy."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest

from tests.support.docker_engine import engine_or_skip
from tests.support.load import Load
from tests.support.saved_models import predict_request
from tests.support.swarm import Swarm, docker_or_skip
from tests.support.waiting import eventually

pytestmark = pytest.mark.asyncio

SIZES = {"etcd-0": 1, "etcd-1": 1, "etcd-2": 1, "control-plane": 2, "envoy": 1, "serving": 2}

Step = Callable[[str], None]


@pytest.fixture(scope="module")
def step() -> Step:
    """Tells how long what has just been done took."""
    began = time.monotonic()

    def told(name: str) -> None:
        nonlocal began
        print(f"{name}: {time.monotonic() - began:.1f} s", flush=True)
        began = time.monotonic()

    return told


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory, step: Step) -> Iterator[Swarm]:
    if os.environ.get("SWARM") != "1":
        pytest.skip("asked for by SWARM=1 only")
    program = docker_or_skip()
    engine = engine_or_skip()
    try:
        if not engine.own:
            pytest.skip("the engine is borrowed: it is not ours to make it a swarm")
        step("engine")
        swarm = Swarm(engine, program, tmp_path_factory.mktemp("swarm"))
        try:
            swarm.build()
            step("images")
            swarm.init()
            step("swarm")
            yield swarm
        finally:
            swarm.close()
    finally:
        engine.close()


def load_of(swarm: Swarm) -> Load:
    return Load(f"127.0.0.1:{swarm.port}", predict_request("half_plus_two", [1.0]), 4, rest=0.01, timeout=60)


async def test_it_is_deployed_and_answers(swarm: Swarm, step: Step) -> None:
    swarm.deploy()
    for service, number in SIZES.items():
        await swarm.all_healthy(service, number)
    step("deployed from nothing to all healthy")
    async with load_of(swarm) as load:
        await load.more(50)
    step("50 answers")
    load.assert_all_ok()


async def test_what_is_killed_comes_back_by_itself(swarm: Swarm, step: Step) -> None:
    """Each container once, but Envoy, which is this node's one address."""
    async with load_of(swarm) as load:
        for service, number in SIZES.items():
            if service == "envoy":
                continue
            for container in swarm.containers(service):
                swarm.engine.api.kill(container)
                await swarm.all_healthy(service, number, but=frozenset({container}))
                step(f"one of {service} killed, and replaced")
                await swarm.shared_by(swarm.containers("serving"))
                load.assert_all_ok()
    step(f"{len(load.outcomes)} requests, none failed")


async def test_instances_come_and_go(swarm: Swarm, step: Step) -> None:
    async with load_of(swarm) as load:
        swarm.scale("serving", 4)
        four = await swarm.all_healthy("serving", 4)
        step("four instances are healthy")
        await swarm.shared_by(four)
        step("each has its share")
        swarm.scale("serving", 2)
        await swarm.all_healthy("serving", 2)
        step("two drained and gone")
        await load.more(200)
    load.assert_all_ok()
    step(f"{len(load.outcomes)} requests, none failed")


@pytest.mark.parametrize("service", ["serving", "control-plane"])
async def test_a_rolling_update(swarm: Swarm, step: Step, service: str) -> None:
    before = frozenset(swarm.containers(service))
    async with load_of(swarm) as load:
        swarm.service(service, "update", "--force")
        await eventually(lambda: swarm.update(service) == "completed", f"the update of {service}", 180)
        await swarm.all_healthy(service, SIZES[service], but=before)
        step(f"{service} updated, one by one")
        await load.more(200)
    load.assert_all_ok()
    step(f"{len(load.outcomes)} requests, none failed")


async def test_envoy_is_killed_and_comes_back(swarm: Swarm, step: Step) -> None:
    killed = swarm.containers("envoy")[0]
    swarm.engine.api.kill(killed)
    await swarm.all_healthy("envoy", 1, but=frozenset({killed}))
    step("envoy killed, and replaced")
    async with load_of(swarm) as load:
        await load.more(20)
    load.assert_all_ok()


async def test_nothing_is_left(swarm: Swarm, step: Step) -> None:
    await swarm.remove()
    step("removed")
    assert not swarm("service", "ls", "-q")
