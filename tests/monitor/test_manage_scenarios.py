"""Assignments carried out by a real monitor on a real model server, with a real etcd: each test waits for what the
registry says and for what the server answers. One server for all of them; each test has models of its own."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from monitor.config import MonitorConfig
from monitor.errors import MonitorError
from monitor.service import run
from registry.assignments import AssignedModel, Assignment, encode_assignment
from registry.etcd import EtcdConfig
from registry.found import decode_found
from registry.keys import AssignmentKey, DiskKey
from registry.records import InstanceRecord, PlaneRecord, ReadyState
from tests.monitor.registry_view import RegistryView
from tests.support import saved_models
from tests.support.etcd import Etcd
from tests.support.model_server import ModelServer
from tests.support.processes import ChildProcess, free_port
from tests.support.reloading import states
from tests.support.waiting import eventually

pytestmark = pytest.mark.scenario
READY, DRAINING = ReadyState.READY, ReadyState.DRAINING
FLAGS = ("--rest_api_port=0", "--num_load_threads=4")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    base = tmp_path_factory.mktemp("managed")
    (base / "config").write_text("model_config_list { }")
    with ModelServer(base / "log", f"--model_config_file={base / 'config'}", *FLAGS) as server:
        yield server


@asynccontextmanager
async def managing(etcd: Etcd, port: int, **more: object) -> AsyncIterator[asyncio.Task[int]]:
    config = MonitorConfig(target=f"127.0.0.1:{port}", instance="i", lease_ttl=2.0, manage=True)
    task = asyncio.create_task(run(replace(config, etcd=EtcdConfig(endpoints=(etcd.endpoint,)), **more)))  # type: ignore[arg-type]
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def assign(registry: RegistryView, models: dict[str, AssignedModel]) -> None:
    await registry.client.put(registry.keys.make(AssignmentKey("i")), encode_assignment(Assignment(models)))


def of(base: Path, *versions: int, **more: object) -> AssignedModel:
    return AssignedModel(str(base), versions, **more)  # type: ignore[arg-type]


async def until(registry: RegistryView, **wanted: dict[int, ReadyState]) -> None:
    async def reached() -> bool:
        found = await registry.ready()
        seen = {name: {v: state for (m, v), state in found.items() if m == name} for name in wanted}
        assert seen == wanted, (seen, [str(one) for one in (await instance(registry)).conditions])
        return True

    await eventually(reached, f"{wanted}", 40)


async def instance(registry: RegistryView) -> InstanceRecord:
    record = await registry.instance("i")
    assert record is not None
    return record


async def conditions(registry: RegistryView) -> set[tuple[str, str]]:
    return {(one.name, one.model) for one in (await instance(registry)).conditions}


async def until_conditions(registry: RegistryView, *wanted: tuple[str, str]) -> None:
    async def reached() -> bool:
        assert await conditions(registry) == set(wanted)
        return True

    await eventually(reached, f"conditions {wanted}", 40)


async def test_goes_from_one_version_to_the_next_and_unloads_only_what_is_drained(
    etcd: Etcd, registry: RegistryView, shared: ModelServer, tmp_path: Path
) -> None:
    m, base = tmp_path / "m", tmp_path / "unasked"
    for version in (1, 2, 3):
        saved_models.half_plus_two(m, version, b=version)
    saved_models.half_plus_two(base, 1)
    async with managing(etcd, shared.port, label=("gpu=a100",), memory="1GiB", drain_deadline=1.0):
        record = await eventually(lambda: registry.instance("i"), "the record")
        assert (record.managed, record.labels, record.memory) == (True, {"gpu": "a100"}, 2**30)
        await assign(registry, {"m": of(m, 1, labels={"stable": 1}, warm_up_requests=3)})
        await until(registry, m={1: READY})
        assert (await registry.records())["m", 1].several_versions
        size = sum(one.stat().st_size for one in (m / "1").rglob("*") if one.is_file())
        await eventually(lambda: _found(registry, {"m": dict.fromkeys((1, 2, 3), size)}), "what is on the disk")
        # The new one is added to the old one, and both answer.
        await assign(registry, {"m": of(m, 1, 2, labels={"stable": 1, "canary": 2})})
        await until(registry, m={1: READY, 2: READY})
        # What has gone drains, for as long as a control plane's Envoy has not turned away.
        await registry.plane("p", PlaneRecord(0, envoys=1))
        await assign(registry, {"m": of(m, 2, labels={"stable": 2})})
        await until(registry, m={1: DRAINING, 2: READY})
        # No deadline takes it from an Envoy that may still send there.
        await until_conditions(registry, ("DrainDeadline", "m"))
        # Taken back it serves at once: nothing was unloaded.
        await assign(registry, {"m": of(m, 1, 2)})
        await until(registry, m={1: READY, 2: READY})
        await assign(registry, {"m": of(m, 2, labels={"stable": 2})})
        assert await conditions(registry) <= {("DrainDeadline", "m")}
        assert states(shared, "m") == "2=AVAILABLE 1=AVAILABLE"
        await registry.plane("p", None)
        await until(registry, m={1: DRAINING, 2: READY})
        # All have turned away: what is in flight the server answers before it lets go.
        await registry.plane("p", PlaneRecord(2**40, envoys=1, draining={"i": 1}, servables={"i": {"m@1": 1}}))
        await until(registry, m={2: READY})
        await eventually(lambda: states(shared, "m") == "2=AVAILABLE 1=END", "the unload")
        assert shared.predict("m", 0) == 2
        await registry.plane("p", PlaneRecord(2**40))
        # All at once, and then none.
        await assign(registry, {"m": of(m, 3)})
        await until(registry, m={3: READY})
        await assign(registry, {})
        await until(registry, m={})
        await eventually(lambda: states(shared, "m") == "3=END 2=END 1=END", "the end")
        assert await conditions(registry) == set()


async def test_what_fails_says_so_and_is_tried_again_when_its_files_are_repaired(
    etcd: Etcd, registry: RegistryView, shared: ModelServer, tmp_path: Path
) -> None:
    """3.3, 3.4: a broken version, a missing one, a missing path; and the rest goes on all the while."""
    good, bad = tmp_path / "good", tmp_path / "bad"
    saved_models.half_plus_two(good, 1)
    saved_models.half_plus_two(bad, 1, b=1)
    folder = saved_models.corrupt(bad, 2)
    await registry.plane("p", PlaneRecord(2**40))
    async with managing(etcd, shared.port):
        await assign(registry, {"bad": of(bad, 1), "gone": of(tmp_path / "gone", 1), "good": of(good, 1)})
        await until(registry, bad={1: READY}, good={1: READY})
        await assign(registry, {"bad": of(bad, 2), "gone": of(tmp_path / "gone", 1), "good": of(good, 1)})
        # The old version is kept: nothing that is assigned answers.
        await eventually(
            lambda: _has(registry, ("LoadFailed", "bad"), ("OldVersionsKept", "bad")), "the failure's name", 40
        )
        assert (await registry.ready())["bad", 1] is READY
        saved_models.repair(folder)
        await until(registry, bad={2: READY}, good={1: READY})
        saved_models.half_plus_two(tmp_path / "gone", 1)
        await until(registry, gone={1: READY})
        await until_conditions(registry)
        await assign(registry, {})
        await until(registry, bad={}, good={}, gone={})


async def _found(registry: RegistryView, wanted: dict[str, dict[int, int]]) -> bool:
    found = await registry.client.get(registry.keys.make(DiskKey("i")))
    assert found is not None
    assert {name: one.versions for name, one in decode_found(found.value).models.items()} == wanted
    return True


async def _has(registry: RegistryView, *wanted: tuple[str, str]) -> bool:
    assert set(wanted) <= await conditions(registry)
    return True


async def test_goes_on_from_what_it_sees(etcd: Etcd, registry: RegistryView, tmp_path: Path) -> None:
    """Monitor restarted, with another assignment meanwhile; server restarted, empty; the assignment gone."""
    a, b = tmp_path / "a", tmp_path / "b"
    for version in (1, 2):
        saved_models.half_plus_two(a, version)
        saved_models.half_plus_two(b, version)
    (tmp_path / "config").write_text("model_config_list { }")
    flags = [f"--model_config_file={tmp_path / 'config'}", *FLAGS]
    with ModelServer(tmp_path / "log", *flags) as first:
        command = [sys.executable, "-m", "modelplane", "monitor", "--instance=i", "--manage", "--lease-ttl=60"]
        address = (f"--etcd={etcd.endpoint}", f"--target=127.0.0.1:{first.port}")
        with ChildProcess([*command, *address], tmp_path / "monitor") as killed:
            await assign(registry, {"a": of(a, 1), "b": of(b, 1)})
            await until(registry, a={1: READY}, b={1: READY})
            await registry.plane("p", PlaneRecord(0, envoys=1))
            killed.kill()
        await assign(registry, {"a": of(a, 2)})
        async with managing(etcd, first.port):
            # What the first one had loaded is drained before it goes; of b nothing but the name is known.
            await until(registry, a={1: READY}, b={1: DRAINING})
            await registry.plane("p", PlaneRecord(2**40))
            await until(registry, a={2: READY}, b={})
            assert states(first, "a") == "2=AVAILABLE 1=END"
            await registry.client.delete(registry.keys.make(AssignmentKey("i")))
            first.child.stop()
            with ModelServer(tmp_path / "log2", *flags, f"--port={first.port}", wait=False):

                def loaded() -> bool:
                    with contextlib.suppress(grpc.RpcError):
                        return states(first, "a") == "2=AVAILABLE"
                    return False

                await eventually(loaded, "the model on the new server", 40)
                await until(registry, a={2: READY})


async def test_a_server_of_its_own_starts_empty_and_one_that_can_not_be_managed_is_refused(
    etcd: Etcd, registry: RegistryView, tmp_path: Path
) -> None:
    m = tmp_path / "m"
    saved_models.half_plus_two(m, 1)
    server = (sys.executable, "-m", "model_server", "--rest_api_port=0", "--bind_address=127.0.0.1")
    port = free_port()
    command = [sys.executable, "-m", "modelplane", "monitor", f"--etcd={etcd.endpoint}", "--instance=i", "--manage"]
    with ChildProcess([*command, "--", *server, f"--port={port}"], tmp_path / "log"):
        await assign(registry, {"m": of(m, 1)})
        await until(registry, m={1: READY})
    for flags in (("--model_config_file_poll_wait_seconds=1",), ("--file_system_poll_wait_seconds", "0")):
        with pytest.raises(MonitorError, match=r"--manage: .* leave that flag out"):
            await run(MonitorConfig(manage=True), (*server, f"--port={port}", *flags))
    with pytest.raises(MonitorError, match="model m is not known"):
        await run(MonitorConfig(manage=True, target=f"127.0.0.1:{port}", model=("m",)))
