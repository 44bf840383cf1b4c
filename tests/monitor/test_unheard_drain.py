"""Drains where no control plane is registered: nobody can say what is in flight, and that is said."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from registry.drains import UNHEARD
from registry.records import PlaneRecord, ReadyState
from tests.monitor.registry_view import RegistryView
from tests.monitor.scripted_server import ScriptedServer
from tests.support.etcd import Etcd
from tests.support.processes import ChildProcess, free_port
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]


async def command(etcd: Etcd, *arguments: str) -> tuple[int | None, str]:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "modelplane", *arguments, "--etcd", etcd.endpoint),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=ROOT,
    )
    output, _ = await child.communicate()
    return child.returncode, output.decode()


@contextmanager
def monitoring(etcd: Etcd, *arguments: str) -> Iterator[ChildProcess]:
    command = [sys.executable, "-m", "modelplane", "monitor", f"--etcd={etcd.endpoint}", "--instance=i", *arguments]
    with ChildProcess(command, etcd.folder / "monitor.log", {"PYTHONPATH": str(ROOT)}) as monitor:
        yield monitor


async def test_a_drain_without_a_control_plane_says_so(
    etcd: Etcd, registry: RegistryView, server: ScriptedServer
) -> None:
    """Waits for each command, and for the monitor's end."""
    with monitoring(etcd, f"--target=127.0.0.1:{server.port}", "--model=m") as monitor:

        async def ready() -> bool:
            return await registry.ready() == {("m", 1): ReadyState.READY}

        async def told() -> list[str]:
            record = await registry.instance("i")
            return [one.text for one in record.conditions if one.name == UNHEARD] if record else []

        await eventually(ready, "the model to be ready")
        # It is the last instance too, so that only --force drains it.
        code, output = await command(etcd, "drain", "i", "--force")
        assert code == 4, output
        assert "nobody could say that nothing is in flight: drained all of it, but no control plane" in output
        assert len(await told()) == 1
        assert (await command(etcd, "undrain", "i"))[0] == 0
        await eventually(ready, "the model to be ready again")
        assert not await told()
        monitor.send(signal.SIGTERM)
        await eventually(lambda: not monitor.alive(), "the monitor's end")
        assert "drained, but nobody could say that nothing is in flight: no control plane" in monitor.output


async def test_a_server_is_not_stopped_after_such_a_drain_without_force(etcd: Etcd, registry: RegistryView) -> None:
    """Waits for each command, and for the end of the monitor, which owns the server. The control plane comes later."""
    flags = (f"--port={free_port()}", "--model_name=m", "--model_base_path=/nowhere")
    with monitoring(etcd, "--", sys.executable, "-m", "tests.monitor.scripted_server", *flags) as monitor:

        async def ready() -> bool:
            return await registry.ready() == {("m", 1): ReadyState.READY}

        await eventually(ready, "the model to be ready")
        assert (await command(etcd, "drain", "i", "--force"))[0] == 4
        await registry.plane("p", PlaneRecord(1))
        code, output = await command(etcd, "drain", "i", "--stop")
        assert code == 1
        assert "is not stopped, since nobody could say that nothing is in flight on it" in output
        assert monitor.alive()
        code, output = await command(etcd, "drain", "i", "--stop", "--force")
        assert code == 4, output
        await eventually(lambda: not monitor.alive(), "the monitor's end")
    await registry.plane("p", None)
