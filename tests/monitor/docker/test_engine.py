"""`modelplane monitor --docker` on a real Docker Engine, with real containers."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from registry.follow import Changes, Snapshot, follow
from registry.keys import ReadyKey
from registry.records import InstanceState, ReadyRecord, ReadyState, decode_ready
from tests.monitor.registry_view import RegistryView
from tests.support.docker_engine import IMAGE, ROOT, DockerEngine, engine_or_skip
from tests.support.etcd import Etcd
from tests.support.load import Load
from tests.support.processes import ChildProcess
from tests.support.saved_models import predict_request
from tests.support.stack import Stack
from tests.support.waiting import eventually

pytestmark = pytest.mark.scenario

READY = ReadyState.READY
LABELS = {"modelplane.enable": "true", "modelplane.models": "digits", "modelplane.grpc-port": "9000"}


@pytest.fixture(scope="module")
def shared_engine() -> Iterator[DockerEngine]:
    with engine_or_skip() as engine:
        yield engine


@pytest.fixture
def engine(shared_engine: DockerEngine) -> Iterator[DockerEngine]:
    yield shared_engine
    shared_engine.clear()


@pytest.fixture
async def registry(etcd: Etcd) -> AsyncIterator[View]:
    async with View(etcd.endpoint) as view:
        yield view


class View(RegistryView):
    """Reads readiness by (model, instance)."""

    async def endpoints(self) -> dict[tuple[str, str], ReadyRecord]:
        listing = await self.client.list(self.keys.ready)
        found = {}
        for entry in listing.entries:
            key = self.keys.parse(entry.key)
            assert isinstance(key, ReadyKey)
            found[key.model, key.instance] = decode_ready(entry.value)
        return found

    async def until(self, *wanted: tuple[str, str], timeout: float = 20.0) -> None:
        """Exactly these are READY."""

        async def there() -> bool:
            found = {name for name, record in (await self.endpoints()).items() if record.state is READY}
            assert found == set(wanted)
            return True

        await eventually(there, f"{wanted} ready", timeout)

    async def state(self, model: str, instance: str) -> ReadyState | None:
        record = (await self.endpoints()).get((model, instance))
        return record.state if record else None

    async def address(self, model: str, instance: str) -> str:
        return (await self.endpoints())[model, instance].address


def name(short: str) -> str:
    return f"mp-{os.getpid()}-{short}"


def instance(short: str) -> str:
    return f"{name(short)}@h"


def server(port: int, models: str) -> list[str]:
    flags = ("--host=0.0.0.0", f"--port={port}", f"--model_name={models}", "--model_base_path=/models/x")
    return [sys.executable, "-m", "tests.monitor.scripted_server", *flags]


def entrypoint(folder: Path) -> Path:
    """The image's own script, as far as a server of one model needs it."""
    script = folder / "tf_serving_entrypoint.sh"
    script.write_text(f"#!/bin/sh\nexec {' '.join(server(8500, '${MODEL_NAME}'))}\n")
    script.chmod(0o755)
    return script


@contextmanager
def monitor(etcd: Etcd, engine: DockerEngine, *flags: str, log: str = "monitor.log") -> Iterator[ChildProcess]:
    command = [sys.executable, "-m", "modelplane", "monitor", "--docker", f"--docker-url={engine.url}"]
    command += ["--docker-host-name=h", f"--etcd={etcd.endpoint}", "--lease-ttl=30", *flags]
    with ChildProcess(command, etcd.folder / log, {"PYTHONPATH": str(ROOT)}) as child:
        yield child


async def test_follows_containers_through_their_life(
    etcd: Etcd, registry: View, engine: DockerEngine, tmp_path: Path
) -> None:
    """Waits for what the registry says after each thing that is done to a container; the lease outlasts the test."""
    first, second = engine.network("first"), engine.network("second")
    script = entrypoint(tmp_path)
    entry = {"entrypoint": ["/tf_serving_entrypoint.sh"], "environment": {"MODEL_NAME": "letters"}}
    labelled = engine.container(name("labelled"), server(9000, "digits"), first, labels=LABELS)
    engine.container(name("image"), [], first, image=IMAGE, binds=[f"{script}:/tf_serving_entrypoint.sh:ro"], **entry)
    engine.container(name("other"), server(8500, "other"), first)
    with monitor(etcd, engine) as process:
        await registry.until(("digits", instance("labelled")), ("letters", instance("image")))

        engine.api.pause(labelled)
        await registry.until(("letters", instance("image")), timeout=3)
        record = await registry.instance(instance("labelled"))
        assert record is not None
        assert (record.state, record.detail) == (InstanceState.UNREACHABLE, "its container is paused")
        engine.api.unpause(labelled)
        await registry.until(("digits", instance("labelled")), ("letters", instance("image")))

        before = await registry.address("digits", instance("labelled"))
        engine.api.connect_container_to_network(labelled, second)
        engine.api.disconnect_container_from_network(labelled, first)

        async def moved() -> bool:
            record = (await registry.endpoints()).get(("digits", instance("labelled")))
            return record is not None and record.state is READY and record.address != before

        await eventually(moved, "the address in the other network")

        engine.api.kill(labelled)
        await registry.until(("letters", instance("image")), timeout=5)
        assert await registry.instance(instance("labelled")) is None
        engine.api.start(labelled)
        await registry.until(("digits", instance("labelled")), ("letters", instance("image")))
        engine.remove(labelled)
        await registry.until(("letters", instance("image")), timeout=5)
        process.send(signal.SIGTERM)
        assert process.wait() == 0
        await registry.until(("letters", instance("image")))
        assert "Traceback" not in process.output


async def test_a_container_whose_health_check_fails_is_a_last_resort(
    etcd: Etcd, registry: View, engine: DockerEngine
) -> None:
    """Waits for Docker's health check to fail and to succeed again."""
    check = {"test": ["CMD", "/usr/bin/test", "!", "-e", "/tmp/sick"], "interval": 200_000_000, "retries": 1}
    container = engine.container(
        name("sick"), server(9000, "digits"), engine.network("n"), labels=LABELS, healthcheck=check
    )
    with monitor(etcd, engine):
        await registry.until(("digits", instance("sick")))

        async def is_now(state: ReadyState) -> bool:
            return await registry.state("digits", instance("sick")) is state

        engine.execute(container, "/usr/bin/touch", "/tmp/sick")
        await eventually(lambda: is_now(ReadyState.FAILING), "the endpoint to be FAILING")
        record = await registry.instance(instance("sick"))
        assert record is not None
        assert [condition.name for condition in record.conditions] == ["ContainerUnhealthy"]
        engine.execute(container, "/usr/bin/rm", "/tmp/sick")
        await eventually(lambda: is_now(READY), "the endpoint to be READY again")


async def test_a_container_is_drained_and_stopped_by_command(etcd: Etcd, registry: View, engine: DockerEngine) -> None:
    """Waits for the container's end after `modelplane drain --stop`, and for its return after `docker start`."""
    network = engine.network("n")
    one, two = (engine.container(name(it), server(9000, "digits"), network, labels=LABELS) for it in ("one", "two"))
    both = (("digits", instance("one")), ("digits", instance("two")))
    with monitor(etcd, engine, "--docker-at-exit=drain") as process:
        await registry.until(*both)
        command = [sys.executable, "-m", "modelplane", "drain", instance("one"), "--stop", f"--etcd={etcd.endpoint}"]
        with ChildProcess(command, etcd.folder / "drain.log", {"PYTHONPATH": str(ROOT)}) as draining:
            assert await asyncio.to_thread(draining.wait) == 0, draining.output
        await eventually(lambda: not engine.api.inspect_container(one)["State"]["Running"], "the container's end")
        await registry.until(both[1])
        engine.api.start(one)
        await registry.until(*both)
        process.send(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait) == 0
        await registry.until()
        assert all(engine.api.inspect_container(it)["State"]["Running"] for it in (one, two)), "they run on"


async def test_the_config_file_is_read_inside_the_container(
    etcd: Etcd, registry: View, engine: DockerEngine, tmp_path: Path
) -> None:
    """Waits for what the file names; the server itself has more."""
    config = tmp_path / "models.config"
    config.write_text('model_config_list { config { name: "letters" base_path: "/m" } }')
    command = [*server(9000, "digits,letters"), "--model_config_file=/models.config"]
    labels = {"modelplane.enable": "true"}
    engine.container(name("file"), command, engine.network("n"), labels=labels, binds=[f"{config}:/models.config:ro"])
    with monitor(etcd, engine):
        await registry.until(("letters", instance("file")))


async def test_the_engine_goes_and_comes(etcd: Etcd, registry: View, engine: DockerEngine) -> None:
    """Waits for the monitor's word that the engine is away and back, and for what the registry says after it."""
    if not engine.own:
        pytest.skip("an engine that is not the tests' own is not restarted")
    engine.stop()
    engine.run("--live-restore")
    network = engine.network("n")
    always = {"restart_policy": {"Name": "always"}}
    stays = engine.container(name("stays"), server(9000, "digits"), network, labels=LABELS, host=always)
    ends = engine.container(name("ends"), server(9000, "digits"), network, labels=LABELS)
    key = registry.keys.make(ReadyKey("digits", 1, instance("stays")))
    with monitor(etcd, engine) as process:
        await registry.until(("digits", instance("stays")), ("digits", instance("ends")))
        before = await registry.client.get(key)
        pid = engine.api.inspect_container(ends)["State"]["Pid"]

        await asyncio.to_thread(engine.stop)
        await eventually(lambda: "is away, its containers stay watched" in process.output, "the news")
        os.kill(pid, signal.SIGKILL)
        await registry.until(("digits", instance("stays")))
        assert await registry.instance(instance("ends")) is not None, "the engine alone knows whether it is gone"
        await asyncio.to_thread(engine.run, "--live-restore")
        await eventually(lambda: "the Docker engine is back" in process.output, "the news")

        async def gone() -> bool:
            return await registry.instance(instance("ends")) is None

        await eventually(gone, "the end of what ended meanwhile")
        late = engine.container(name("late"), server(9000, "digits"), network, labels=LABELS)
        await registry.until(("digits", instance("stays")), ("digits", instance("late")))
        assert await registry.client.get(key) == before, "nothing was written of one that was there all the time"

        run = engine.api.inspect_container(stays)["State"]["StartedAt"]
        await asyncio.to_thread(engine.stop)
        await asyncio.to_thread(engine.run)
        await eventually(lambda: process.output.count("the Docker engine is back") == 2, "the news")
        await registry.until(("digits", instance("stays")))
        assert engine.api.inspect_container(stays)["State"]["StartedAt"] != run, "it was started again"
        assert not engine.api.inspect_container(late)["State"]["Running"]


async def test_clients_see_nothing_of_what_happens_to_one_container_or_the_monitor(
    engine: DockerEngine, tmp_path: Path
) -> None:
    """Waits for answers through Envoy after each fault. A killed container's requests in flight may fail: none did."""
    network = engine.network("n")
    with ExitStack() as cleanup:
        stack = Stack(tmp_path)
        cleanup.callback(stack.close)
        registry = await View(stack.etcd.endpoint).__aenter__()
        one, two, three = (
            engine.container(name(short), server(9000, "digits"), network, labels=LABELS)
            for short in ("one", "two", "three")
        )
        everyone = [("digits", instance(short)) for short in ("one", "two", "three")]
        process = cleanup.enter_context(monitor(stack.etcd, engine))
        await registry.until(*everyone)
        await stack.until_ready(*(ReadyKey(model, 1, instance) for model, instance in everyone))
        async with Load(stack.grpc, predict_request("digits", [1.0]), clients=4) as load:
            await load.more(50)
            for end in (signal.SIGKILL, signal.SIGTERM):
                async with Witness(registry) as witness:
                    process.send(end)
                    process.wait()
                    process = cleanup.enter_context(monitor(stack.etcd, engine, log=f"after-{end.name}.log"))
                    await proofs(process, 3)
                    await load.more(50)
                assert witness.lost == [], end

            engine.api.kill(one)
            await registry.until(*everyone[1:])
            await load.more(50)
            engine.api.start(one)
            await registry.until(*everyone)
            engine.api.pause(two)
            await registry.until(everyone[0], everyone[2])
            # Those in flight on it wait; the other clients go on.
            await load.more(5)
            engine.api.unpause(two)
            await registry.until(*everyone)
            engine.api.stop(three)
            await registry.until(*everyone[:2])
            await load.more(50)
        await registry.__aexit__(None, None, None)
        load.assert_all_ok(at_least=300)


async def proofs(process: ChildProcess, count: int) -> None:
    await eventually(lambda: process.output.count("proved: ") >= count, "proofs of its own")


class Witness:
    """Follows readiness, and keeps each key that went or was no longer READY."""

    def __init__(self, registry: View) -> None:
        self._registry = registry
        self.lost: list[str] = []

    async def __aenter__(self) -> Witness:
        self._began = asyncio.Event()
        self._task = asyncio.create_task(self._follow())
        await self._began.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _follow(self) -> None:
        async for update in follow(self._registry.client, self._registry.keys.ready):
            if isinstance(update, Snapshot):
                self._began.set()
            if isinstance(update, Changes):
                self.lost += sorted(update.deletes)
                self.lost += [key for key, value in update.puts.items() if decode_ready(value).state is not READY]
