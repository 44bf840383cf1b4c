"""What clients see, through Envoy, of a Docker host on which things happen."""

from __future__ import annotations

import asyncio
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from registry.follow import Changes, Snapshot, follow
from registry.keys import ReadyKey
from registry.records import decode_ready
from tests.monitor.docker.containers import LABELS, READY, View, instance, monitor, name, server
from tests.support.docker_engine import DockerEngine
from tests.support.load import Load
from tests.support.processes import ChildProcess
from tests.support.saved_models import predict_request
from tests.support.stack import Stack
from tests.support.waiting import eventually

pytestmark = pytest.mark.scenario


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
