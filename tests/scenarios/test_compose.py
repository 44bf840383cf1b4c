"""compose.yaml on a real engine, with the load from outside of the containers. One stack for all; each test begins and
ends with all of it healthy."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.compose import Compose, compose_or_skip
from tests.support.discovered import Discovery
from tests.support.docker_engine import engine_or_skip
from tests.support.load import Load
from tests.support.saved_models import predict_request
from tests.support.waiting import eventually

pytestmark = pytest.mark.asyncio

SPARE = ("serving", "control-plane-0", "control-plane-1", "etcd-0", "etcd-1", "etcd-2")
"""What may be lost without a request's failing: all but Envoy, which is the one address."""

DASHBOARDS = Path(__file__).parents[2] / "control_plane" / "observability" / "grafana" / "dashboards"
READ = (("GET", "/containers/json"), ("GET", "/v1.41/containers/{}/json"))
REFUSED = (
    ("POST", "/containers/{}/stop"),
    ("POST", "/v1.41/containers/{}/exec"),
    ("DELETE", "/containers/{}"),
    ("PUT", "/containers/{}/archive?path=/tmp"),
    ("POST", "/containers/json/../create"),
    ("GET", "/containers/json/../{}/export"),
    ("GET", "/containers/{}/logs?stdout=1"),
    ("GET", "/images/json"),
)
"""What the proxy of the engine's socket must pass on, and what not; `{}` is a container."""

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
def compose(tmp_path_factory: pytest.TempPathFactory, step: Step) -> Iterator[Compose]:
    program = compose_or_skip()
    engine = engine_or_skip()
    try:
        if not engine.own:
            pytest.skip("the engine is borrowed: the processes of its containers are not ours to kill")
        step("engine")
        compose = Compose(engine, program, tmp_path_factory.mktemp("compose"))
        try:
            compose.build()
            step("images")
            wait_for_the_others()
            step("their turn")
            compose("up", "-d", "--wait", "--no-build")
            step("up")
            yield compose
        finally:
            compose.close()
    finally:
        engine.close()


def wait_for_the_others() -> None:
    """Until the file that CI makes when its other tests are done is there: a stack needs the machine for itself."""
    after = os.environ.get("MODELPLANE_TEST_AFTER")
    while after and not Path(after).exists():
        time.sleep(0.2)


def load_of(compose: Compose, clients: int = 4) -> Load:
    return Load(f"127.0.0.1:{compose.port}", predict_request("half_plus_two", [1.0]), clients, rest=0.01, timeout=60)


async def test_all_of_it_is_healthy_and_answers(compose: Compose, step: Step) -> None:
    async with load_of(compose) as load:
        await load.more(1)
        step("first answer")
        await load.more(50)
    load.assert_all_ok()
    assert not compose.unhealthy()
    assert len(compose.containers("serving")) == 2


async def test_what_crashes_comes_back_by_itself(compose: Compose, step: Step) -> None:
    async with load_of(compose) as load:
        for service in SPARE:
            await compose.crash(compose.containers(service)[0])
            step(f"{service} crashed and came back")
            load.assert_all_ok()
    step(f"{len(load.outcomes)} requests, none failed")


def panels() -> Iterator[tuple[str, str]]:
    """Each panel's dashboard and title, and its query for all models."""
    for file in sorted(DASHBOARDS.glob("*.json")):
        dashboard = json.loads(file.read_text())
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                yield (
                    f"{dashboard['title']}: {panel['title']}",
                    target["expr"].replace("$model", ".*").replace("$__rate_interval", "1m"),
                )


async def test_every_panel_has_data(compose: Compose, step: Step) -> None:
    if not compose.observed:
        pytest.skip("no prometheus, or no busybox, on PATH to make a stand-in for Prometheus' image of")
    asked = list(panels())
    assert len(asked) > 20

    def empty() -> list[tuple[str, str]]:
        return [(panel, query) for panel, query in asked if not compose.prometheus("query", query=query)["result"]]

    async def all_have() -> bool:
        without = await asyncio.to_thread(empty)
        assert not without, without
        return True

    async with load_of(compose) as load:
        await eventually(all_have, "every panel has data", 90)
        step(f"all {len(asked)} queries of the dashboards return data")
        targets = await asyncio.to_thread(compose.prometheus, "targets", state="active")
    up = Counter(target["labels"]["job"] for target in targets["activeTargets"] if target["health"] == "up")
    assert up == {"control-plane": 2, "envoy": 1, "etcd": 3, "monitor": 2}
    rules = [rule for group in compose.prometheus("rules")["groups"] for rule in group["rules"]]
    assert len(rules) > 10
    assert {rule["health"] for rule in rules} == {"ok"}
    assert not [rule["name"] for rule in rules if rule["state"] == "firing"]
    load.assert_all_ok()


async def test_what_is_killed_comes_back_with_up(compose: Compose, step: Step) -> None:
    async with load_of(compose) as load:
        for service in SPARE:
            await compose.kill(compose.containers(service)[0])
            step(f"{service} killed, and brought back")
            load.assert_all_ok()
    step(f"{len(load.outcomes)} requests, none failed")


async def test_instances_come_and_go(compose: Compose, step: Step) -> None:
    async with load_of(compose) as load:
        await asyncio.to_thread(compose, "up", "-d", "--wait", "--no-build", "--no-recreate", "--scale", "serving=5")
        step("five instances are healthy")
        five = compose.containers("serving")
        assert len(five) == 5
        before = {container: compose.received(container) for container in five}

        def all_share() -> bool:
            received = [compose.received(container) - before[container] for container in five]
            return sum(received) > 1000 and min(received) > sum(received) / 10

        await eventually(all_share, "each of five instances gets its share", 20)
        step("they share the load")
        await asyncio.to_thread(compose, "up", "-d", "--no-build", "--no-recreate", "--scale", "serving=2")
        step("three drained and gone")
        assert len(compose.containers("serving")) == 2
        await load.more(200)
    load.assert_all_ok()
    step(f"{len(load.outcomes)} requests, none failed")


async def test_a_monitor_beside_its_server_is_lost_alone(compose: Compose, step: Step) -> None:
    """Its server is used on: it answers the control planes' own checks."""
    sidecar = ("--profile", "sidecar")
    up = (*sidecar, "up", "-d", "--wait", "--no-build", "--no-recreate")

    async def leased(on: bool) -> bool:
        return ("lease lost on sidecar" in await asyncio.to_thread(compose.modelplane, "status")) is not on

    async def gets_its_share() -> None:
        before = compose.received(server)
        await eventually(lambda: compose.received(server) - before > 500, "the server gets its share", 30)

    await asyncio.to_thread(compose, *up)
    monitor, server = (compose(*sidecar, "ps", "-q", f"sidecar-{name}").strip() for name in ("monitor", "serving"))
    step("a server with its monitor as a sidecar is healthy")
    async with load_of(compose) as load:
        await gets_its_share()
        step("it gets its share")
        for container, name in ((monitor, "monitor"), (server, "server")):
            await compose.crash(container)
            await gets_its_share()
            step(f"the {name} crashed and came back alone")
            load.assert_all_ok()
        compose.engine.api.kill(monitor)
        await eventually(lambda: leased(False), "the lease to run out", 30)
        await gets_its_share()
        step("the monitor was killed, its lease ran out, and the server is used on")
        await asyncio.to_thread(compose, *up)
        await eventually(lambda: leased(True), "the monitor to be back", 30)
        step("the monitor is back")
        await asyncio.to_thread(compose, *sidecar, "rm", "-f", "-s", "sidecar-monitor", "sidecar-serving")
        await asyncio.to_thread(compose, *sidecar, "rm", "-f", "-s", "sidecar-network")
        step("drained and gone")
        await load.more(200)
    load.assert_all_ok()
    step(f"{len(load.outcomes)} requests, none failed")


async def test_an_instance_is_cut_off(compose: Compose, step: Step) -> None:
    """What it has in flight waits until TCP gives it up, and is asked elsewhere then. Later its address is another."""
    async with load_of(compose, clients=16) as load:
        cut = compose.containers("serving")[0]
        await load.more(500)
        began = time.monotonic()
        address = compose.cut(cut)
        await eventually(lambda: everybody_answered(load, began + 1), "every client is answered", 60)
        waited = [one.seconds for one in load.outcomes if one.started + one.seconds > began and one.seconds > 1]
        step(f"an instance was cut off, {len(waited)} requests waited for it, {max(waited, default=0):.1f} s at most")
        compose.connect(cut, "serving")
        assert compose.address(cut) != address
        await eventually(lambda: compose.received(cut) > 500, "it gets its share again", 60)
        step("connected again, it gets its share")
    load.assert_all_ok()
    assert len(waited) <= load.clients
    step(f"{len(load.outcomes)} requests, none failed")


def everybody_answered(load: Load, since: float) -> bool:
    """Whether each client has an answer to a request that it began after that."""
    return len({one.client for one in load.outcomes if one.started > since}) == load.clients


async def test_the_control_plane_of_envoy_is_cut_off(compose: Compose, step: Step) -> None:
    ask = ("modelplane", "get", "envoys", "-o", "json", "--control-plane")

    async def heard(replica: str) -> bool:
        said = await asyncio.to_thread(compose, "exec", "-T", replica, *ask, f"{replica}:18080")
        return '"node": "envoy"' in said

    cut, other = "control-plane-0", "control-plane-1"
    if await heard(other):
        cut, other = other, cut

    async def listed_anew() -> bool:
        said = await asyncio.to_thread(compose, "exec", "-T", other, *ask[:-1])
        return f'"http": "{compose.address(container)}:18080"' in said

    container = compose.containers(cut)[0]
    async with load_of(compose) as load:
        compose.cut(container)
        await eventually(lambda: heard(other), f"Envoy goes to {other}", 60)
        step(f"{cut} was cut off, and Envoy has gone to {other}")
        # Who can't have heard of a change from the one has it from the other.
        instance = compose.containers("serving")[0]
        await compose.kill(instance)
        await eventually(lambda: compose.received(instance) > 200, "an instance that came meanwhile gets its share", 30)
        step("an instance that was killed and brought back meanwhile has its share")
        compose.connect(container, cut)
        await eventually(lambda: compose.healthy(container), f"{cut} is healthy", 40)
        await eventually(listed_anew, f"{cut} says where it is now", 20)
        await load.more(200)
    load.assert_all_ok()
    step(f"{len(load.outcomes)} requests, none failed")


async def test_one_monitor_finds_the_containers_of_the_host(compose: Compose, step: Step, tmp_path: Path) -> None:
    api = compose.engine.api
    half = {"MODEL_NAME": "half_plus_two"}
    labels = {"modelplane.enable": "true"}
    flags = ("--port=9000", "--model_config_file=/models/models.config")
    discovery = Discovery(compose, tmp_path)
    try:
        async with load_of(compose) as load:
            await asyncio.to_thread(discovery.up)
            step("the monitor of the host is up")
            plain = discovery.run("plain", environment=half)
            labelled = discovery.run(
                "labelled",
                *flags,
                image="modelplane-test-serving:1",
                entrypoint=["tensorflow_model_server"],
                labels=labels,
                healthcheck={"test": ["NONE"]},
            )
            with discovery.project("found") as other:
                await discovery.until(plain, labelled, other)
                await discovery.share(plain, labelled, other)
                step("of an image's name, by a label, in another project: three are found and have their share")
                answers = discovery.ask(*((method, path.format(plain)) for method, path in (*READ, *REFUSED)))
                assert answers == [200] * len(READ) + [403] * len(REFUSED)
                step("the socket's proxy lets read, and nothing else")

                api.kill(plain)
                await discovery.until(labelled, other)
                step("one was killed")
                api.start(plain)
                await discovery.share(plain)
                step("and started again")
                address = compose.cut(labelled)
                await discovery.until(plain, other)
                step("one was cut off")
                compose.connect(labelled, "labelled")
                assert compose.address(labelled) != address
                await discovery.share(labelled)
                step("and connected again, at another address")

                api.kill(discovery.container("discovery"))
                api.kill(plain)
                await load.more(200)
                await asyncio.to_thread(discovery.up)
                await discovery.until(labelled, other)
                step("the monitor was killed, one went meanwhile, and it is back")
                await compose.crash(discovery.container("docker-socket"))
                api.start(plain)
                await discovery.share(plain, labelled, other)
                step("the socket's proxy crashed and is back, and what came meanwhile is found")
                await asyncio.to_thread(api.stop, labelled)
                await discovery.until(plain, other)
            await discovery.until(plain)
            step("one was stopped, a project taken down")
            await load.more(200)
        load.assert_all_ok()
        step(f"{len(load.outcomes)} requests, none failed")
    finally:
        discovery.close()


async def test_envoy_crashes_and_comes_back(compose: Compose, step: Step) -> None:
    await compose.crash(compose.containers("envoy")[0])
    step("envoy crashed and came back")
    async with load_of(compose) as load:
        await load.more(20)
    load.assert_all_ok(at_least=20)


async def test_the_bench_asks_envoy_or_an_instance(compose: Compose, step: Step) -> None:
    if not compose.benched:
        pytest.skip("no ghz on PATH to make an image of")
    for target in ("envoy:8500", "serving:8500"):
        said = await asyncio.to_thread(compose, "--profile", "bench", "run", "--rm", "bench", target)
        print(said)
        assert re.findall(r"^ +\[(\w+)\] ", said, re.MULTILINE) == ["OK"], said
        step(f"ghz asked {target}")


async def test_down_leaves_nothing(compose: Compose, step: Step) -> None:
    await asyncio.to_thread(compose, "down", "-v", "--timeout", "10")
    step("down")
    assert compose("ps", "-q", "-a") == ""
    assert not compose.engine.api.volumes()["Volumes"]
    assert {network["Name"] for network in compose.engine.api.networks()} == {"host", "none"}
