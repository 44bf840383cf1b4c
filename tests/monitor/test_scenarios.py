"""The monitor beside the project's own model server, with SavedModels that are slow, broken, or not what they seem."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from registry.records import InstanceState, Proof, ReadyState, Servable, ServableState
from tests.monitor.registry_view import RegistryView
from tests.monitor.test_prove import predict_log, tfrecords
from tests.support import saved_models
from tests.support.etcd import Etcd
from tests.support.model_server import ModelServer, model_config
from tests.support.processes import ChildProcess, free_port
from tests.support.waiting import eventually

pytestmark = pytest.mark.scenario

READY, LOADING = ReadyState.READY, ReadyState.LOADING
ROOT = Path(__file__).parents[2]


@contextmanager
def monitor(etcd: Etcd, *arguments: str) -> Iterator[ChildProcess]:
    """A monitor of instance `i`, in a process of its own."""
    command = [sys.executable, "-m", "modelplane", "monitor", f"--etcd={etcd.endpoint}", "--instance=i", *arguments]
    with ChildProcess(command, etcd.folder / "monitor.log", {"PYTHONPATH": str(ROOT)}) as child:
        yield child


def attached(etcd: Etcd, server: ModelServer, *arguments: str) -> AbstractContextManager[ChildProcess]:
    return monitor(etcd, f"--target={server.address}", *arguments)


async def servable(registry: RegistryView, model: str, version: int) -> Servable | None:
    record = await registry.instance("i")
    found = (s for s in record.servables if (s.model, s.version) == (model, version)) if record else iter(())
    return next(found, None)


async def until(registry: RegistryView, timeout: float = 30.0, **wanted: int) -> None:
    """Exactly these versions are READY."""

    async def ready() -> bool:
        states = await registry.ready()
        return {name for name, state in states.items() if state is READY} == set(wanted.items())

    await eventually(ready, f"{wanted} and nothing else ready", timeout)


async def test_without_its_variables_a_model_is_never_ready_and_the_record_says_why(
    etcd: Etcd, registry: RegistryView, tmp_path: Path
) -> None:
    """Waits for the model server's port, then for the monitor's verdicts in etcd."""
    saved_models.half_plus_two(tmp_path / "good")
    saved_models.without_variables(tmp_path / "bare")
    models = {"good": tmp_path / "good", "bare": tmp_path / "bare"}
    with ModelServer.of(tmp_path / "server.log", models) as server:
        config = f"--model-config-file={(tmp_path / 'server.log').with_suffix('.config')}"
        with attached(etcd, server, config):
            await until(registry, good=1)

            async def verdict() -> bool:
                bare = await servable(registry, "bare", 1)
                assert bare is not None
                assert (bare.state, bare.proof) == (ServableState.AVAILABLE, Proof.FAILED)
                return bare.proof_detail.startswith("FAILED_PRECONDITION: ")

            await eventually(verdict, "the verdict on the model without variables")
            assert await registry.ready() == {("good", 1): READY, ("bare", 1): LOADING}


async def test_a_slow_load_is_announced_and_a_broken_version_is_told_of(
    etcd: Etcd, registry: RegistryView, tmp_path: Path
) -> None:
    """Waits for the model server's port, then for new version folders to load or fail (polls of 1 s)."""
    base = tmp_path / "m"
    saved_models.half_plus_two(base, 1)
    with (
        ModelServer(tmp_path / "server.log", "--model_name=m", f"--model_base_path={base}") as server,
        attached(etcd, server, f"--model=m={base}"),
    ):
        await until(registry, m=1)
        saved_models.slow_to_load(base, 2, seconds=1.0)

        async def announced() -> bool:
            return await registry.ready() == {("m", 1): READY, ("m", 2): LOADING}

        await eventually(announced, "version 2 announced while version 1 serves")
        await until(registry, m=2)
        saved_models.corrupt(base, 3)

        async def told() -> bool:
            broken = await servable(registry, "m", 3)
            return broken is not None and broken.state is ServableState.END and "DATA_LOSS" in broken.error

        await eventually(told, "the broken version's error")
        assert await registry.ready() == {("m", 2): READY}


async def test_warmup_records_and_inputs_that_no_guess_fits(etcd: Etcd, registry: RegistryView, tmp_path: Path) -> None:
    """Waits for the model server's port, then for three proofs in etcd."""
    recorded = saved_models.half_plus_two(tmp_path / "recorded")
    (recorded / "assets.extra").mkdir()
    (recorded / "assets.extra" / "tf_serving_warmup_requests").write_bytes(tfrecords(predict_log(1.0)))
    saved_models.examples(tmp_path / "examples")
    saved_models.echo(tmp_path / "unranked")
    models = {name: tmp_path / name for name in ("recorded", "examples", "unranked")}
    with ModelServer.of(tmp_path / "server.log", models) as server:
        config = f"--model-config-file={(tmp_path / 'server.log').with_suffix('.config')}"
        with attached(etcd, server, config):
            await until(registry, recorded=1, examples=1, unranked=1)
            found = [await servable(registry, name, 1) for name in models]
            assert [(s.proof, s.proof_detail) for s in found if s] == [
                (Proof.PROVED, "answered 1 of its own warm-up records"),
                (Proof.PROVED, "answered zeros for serving_default"),
                (Proof.TRUSTED, "the rank of input x is unknown"),
            ]


async def test_several_versions_are_known_from_the_servers_own_config_file(
    etcd: Etcd, registry: RegistryView, tmp_path: Path
) -> None:
    """Starts the server as the monitor's child; waits for two versions, a third, and for the end of all by SIGTERM."""
    base, config, port = tmp_path / "m", tmp_path / "models.config", free_port()
    for version in (1, 2):
        saved_models.half_plus_two(base, version, b=version)
    config.write_text(model_config({"m": base}, "latest { num_versions: 2 }"))
    server = (sys.executable, "-m", "model_server", f"--port={port}", f"--model_config_file={config}")
    with monitor(etcd, "--", *server) as child:

        async def both(*versions: int) -> bool:
            records = await registry.records()
            assert all(record.several_versions for record in records.values())
            ready = {version for (_, version), record in records.items() if record.state is READY}
            return ready == set(versions)

        await eventually(lambda: both(1, 2), "both versions ready", timeout=60)
        saved_models.half_plus_two(base, 3, b=3)
        await eventually(lambda: both(2, 3), "the newer two ready")
        child.send(signal.SIGTERM)
        await eventually(lambda: not child.alive(), "the monitor's end", timeout=10)
        assert child.wait() == 0
    assert await registry.empty()


async def test_an_owned_server_that_waits_for_a_model_is_starting_and_not_unreachable(
    etcd: Etcd, registry: RegistryView, tmp_path: Path
) -> None:
    """Starts the server as the monitor's child with a model that is not there; waits for the record, then for READY."""
    base, port = tmp_path / "late", free_port()
    server = (sys.executable, "-m", "model_server", f"--port={port}", "--model_name=late", f"--model_base_path={base}")
    with monitor(etcd, "--", *server):

        async def explained() -> bool:
            record = await registry.instance("i")
            assert record is not None
            assert record.state is InstanceState.STARTING
            return "opens its port once the first version of every model is loaded" in record.detail

        await eventually(explained, "the record to say why nothing is ready")
        saved_models.half_plus_two(base)
        await until(registry, late=1, timeout=60)
