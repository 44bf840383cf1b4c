"""Containers to be watched, the monitor of their host, and what it writes, for tests on a real engine."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from registry.keys import ReadyKey
from registry.records import ReadyRecord, ReadyState, decode_ready
from tests.monitor.registry_view import RegistryView
from tests.support.docker_engine import ROOT, DockerEngine
from tests.support.etcd import Etcd
from tests.support.processes import ChildProcess
from tests.support.waiting import eventually

READY = ReadyState.READY
LABELS = {"modelplane.enable": "true", "modelplane.models": "digits", "modelplane.grpc-port": "9000"}


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
