"""`modelplane monitor --docker` on a real Docker Engine, with real containers."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from registry.keys import ReadyKey
from registry.records import InstanceState, ReadyRecord, ReadyState, decode_ready
from tests.monitor.registry_view import RegistryView
from tests.support.docker_engine import IMAGE, ROOT, DockerEngine, engine_or_skip
from tests.support.etcd import Etcd
from tests.support.processes import ChildProcess
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
def monitor(etcd: Etcd, engine: DockerEngine, *flags: str) -> Iterator[ChildProcess]:
    command = [sys.executable, "-m", "modelplane", "monitor", "--docker", f"--docker-url={engine.url}"]
    command += ["--docker-host-name=h", f"--etcd={etcd.endpoint}", "--lease-ttl=30", *flags]
    with ChildProcess(command, etcd.folder / "monitor.log", {"PYTHONPATH": str(ROOT)}) as child:
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
