"""The lifecycle command against the project's own model server, in each of TF Serving's traps (3.3 to 3.6). Every test
waits for results and for what the server serves, both polled."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from google.protobuf import text_format

from monitor.client import ServerClient
from monitor.pb import tfs_pb2 as tfs
from monitor.reload import Reload, ReloadTiming
from monitor.reloader import Reloader
from monitor.told import Told
from tests.support import saved_models
from tests.support.model_server import ModelServer
from tests.support.reloading import config, states
from tests.support.waiting import eventually

pytestmark = pytest.mark.scenario


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ModelServer]:
    base = tmp_path_factory.mktemp("reloader")
    (base / "config").write_text("model_config_list { }")
    flags = [f"--model_config_file={base / 'config'}", "--rest_api_port=0"]
    with ModelServer(base / "log", *flags) as server:
        yield server


class Machine:
    """A machine that runs beside a server."""

    def __init__(self, machine: Reload, reloader: Reloader) -> None:
        self.machine, self.reloader = machine, reloader

    def want(self, *configs: str) -> None:
        text = f"model_config_list {{ {' '.join(configs)} }}"
        self.reloader.want(text_format.Parse(text, tfs.ModelServerConfig()))

    def result(self, model: str) -> str:
        found = self.machine.results(asyncio.get_running_loop().time()).get(model)
        return "gone" if found is None else found.name or str(found.progress)

    async def reach(self, **wanted: str) -> None:
        def reached() -> bool:
            assert {model: self.result(model) for model in wanted} == wanted
            return True

        await eventually(reached, str(wanted), timeout=40)

    def conditions(self) -> set[str]:
        return {f"{one.name} {one.model}" for one in self.machine.conditions(asyncio.get_running_loop().time())}


@contextlib.asynccontextmanager
async def beside(server: ModelServer, *, disk: bool, deadline: float = 0.5) -> AsyncIterator[Machine]:
    machine = Reload(Told("i"), {}, ReloadTiming(deadline=deadline, last=2.0))
    async with ServerClient("127.0.0.1", server.port) as client:
        reloader = Reloader(machine, client, disk=disk)
        task = asyncio.create_task(reloader.run())
        try:
            yield Machine(machine, reloader)
        finally:
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled()


async def test_on_a_disk_that_it_sees_it_falls_into_no_trap(shared: ModelServer, tmp_path: Path) -> None:
    """3.3: missing path, no version, missing specific version. 3.4: an existing model's missing version, another path
    with the same version. 3.5: labels before their version. 3.6: the others go on all the while."""
    m, moved = tmp_path / "m", tmp_path / "moved"
    for version in (1, 2):
        saved_models.half_plus_two(m, version, b=version)
    saved_models.half_plus_two(moved, 1)
    (tmp_path / "void").mkdir()
    saved_models.corrupt(tmp_path / "broken")
    absent, void = config("absent", tmp_path / "absent"), config("void", tmp_path / "void")
    some = config("some", m, "9"), config("broken", tmp_path / "broken"), config("odd", m, platform="onnx")
    async with beside(shared, disk=True) as machine:
        machine.want(absent, void, *some, config("m", m, "1", labels="stable=1"))
        await machine.reach(m="done", absent="BasePathMissing", void="NoVersions", some="NoVersions")
        await machine.reach(broken="LoadFailed", odd="ReloadRefused")
        assert shared.predict("m", 0) == 1
        assert machine.conditions() == {
            *("BasePathMissing absent", "NoVersions void", "NoVersions some", "LoadFailed broken", "ReloadRefused odd")
        }
        # The way of a canary: the new version, then its label, and only then without the old one.
        machine.want(absent, void, config("m", m, "2", labels="stable=2"))
        await machine.reach(m="done", broken="gone")
        assert states(shared, "m") == "2=AVAILABLE 1=END"
        machine.want(absent, config("m", m, "7"))
        await machine.reach(m="NoVersions")
        machine.want(absent, config("m", moved, "1 2"))
        await machine.reach(m="SameVersionOtherPath")
        assert shared.predict("m", 0) == 2, "it was neither unloaded nor answered for by another path"
        # What was missing comes.
        saved_models.half_plus_two(tmp_path / "absent")
        await machine.reach(absent="done")
        machine.want()
        await machine.reach(m="gone", absent="gone")
        # Dropped and wanted again at once, and again.
        for _ in range(2):
            machine.want(config("m", m))
            await asyncio.sleep(0)
            machine.want()
            machine.want(config("m", m))
            await machine.reach(m="done")
            machine.want()
            await machine.reach(m="Unloading")
        machine.want()
        await machine.reach(m="gone")


async def test_a_drop_that_takes_long_holds_back_what_is_added_again(shared: ModelServer, tmp_path: Path) -> None:
    """3.3: UNKNOWN, although it loads. A request in flight holds up the unload."""
    saved_models.slow(tmp_path / "busy", seconds=1.5)
    async with beside(shared, disk=True) as machine:
        machine.want(config("busy", tmp_path / "busy"))
        await machine.reach(busy="done")
        call = shared.predictions.Predict.future(saved_models.predict_request("busy", [1.0]), timeout=20)
        states(shared, "busy")
        machine.want()
        await eventually(lambda: states(shared, "busy") == "1=UNLOADING", "the unload")
        machine.want(config("busy", tmp_path / "busy"))
        await machine.reach(busy="DroppedAndReadded")
        await machine.reach(busy="done")
        assert call.result().outputs["y"].float_val[0] == 2.5
        machine.want()
        await machine.reach(busy="gone")


async def test_on_a_disk_that_it_does_not_see_the_doubtful_come_last_and_are_named(
    shared: ModelServer, tmp_path: Path
) -> None:
    """3.3: a missing path blocks the reload past its deadline, and all later ones; each is carried out in the end."""
    for name in ("m", "other"):
        saved_models.half_plus_two(tmp_path / name)
    m, other = config("m", tmp_path / "m"), config("other", tmp_path / "other")
    async with beside(shared, disk=False) as machine:
        machine.want(m)
        await machine.reach(m="done")
        machine.want(m, config("absent", tmp_path / "absent"))
        await machine.reach(m="done", absent="ReloadBlocked")
        machine.want(m, config("absent", tmp_path / "absent"), other)
        await machine.reach(m="done", absent="ReloadBlocked", other="ReloadQueued")
        assert machine.conditions() == {"ReloadBlocked absent", "ReloadQueued other"}
        assert shared.predict("m", 1) == 2.5
        # Taken back: the server can't be told, and drops it when it has got it.
        machine.want(m, other)
        await machine.reach(m="done", other="ReloadQueued")
        saved_models.half_plus_two(tmp_path / "absent")
        await machine.reach(m="done", other="done", absent="gone")
        assert machine.conditions() == set()
        await eventually(lambda: states(shared, "absent") == "1=END", "the drop")
        machine.want()
        await machine.reach(m="gone", other="gone")


async def test_a_server_that_was_restarted_is_brought_there_again(tmp_path: Path) -> None:
    saved_models.half_plus_two(tmp_path / "m")
    (tmp_path / "config").write_text("model_config_list { }")
    flags = [f"--model_config_file={tmp_path / 'config'}", "--rest_api_port=0"]
    with ModelServer(tmp_path / "log", *flags) as first:
        async with beside(first, disk=True) as machine:
            machine.want(config("m", tmp_path / "m"))
            await machine.reach(m="done")
            first.child.stop()

            def served() -> bool:
                with contextlib.suppress(grpc.RpcError):
                    return states(first, "m") == "1=AVAILABLE"
                return False

            with ModelServer(tmp_path / "log2", *flags, f"--port={first.port}", wait=False):
                await eventually(served, "the model on the new server")
                await machine.reach(m="done")
