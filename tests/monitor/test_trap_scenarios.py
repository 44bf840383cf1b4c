"""The monitor beside a server in TF Serving's traps: it goes on telling the truth of all models, and names the trap."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from registry.records import ReadyState
from tests.monitor.registry_view import RegistryView
from tests.monitor.test_scenarios import monitor, until
from tests.support import saved_models
from tests.support.etcd import Etcd
from tests.support.processes import free_port
from tests.support.reloading import config
from tests.support.waiting import eventually

pytestmark = pytest.mark.scenario


async def names(registry: RegistryView) -> set[str]:
    record = await registry.instance("i")
    return {f"{one.name} {one.model}".strip() for one in record.conditions} if record else set()


async def test_a_server_whose_own_reload_blocks_and_whose_models_are_frozen(
    etcd: Etcd, registry: RegistryView, tmp_path: Path
) -> None:
    """Starts the server as the monitor's child. Waits for conditions in etcd: a base path that is missing, then without
    a model, then good; and for a new version of the other model, which is served meanwhile."""
    good, late, file, port = tmp_path / "good", tmp_path / "late", tmp_path / "models.config", free_port()
    saved_models.half_plus_two(good, 1)

    def write(*models: str) -> None:
        (tmp_path / "new").write_text(f"model_config_list {{ {' '.join(models)} }}")
        (tmp_path / "new").replace(file)

    async def see(*wanted: str) -> None:
        async def seen() -> bool:
            found = await names(registry)
            assert found == set(wanted)
            return True

        await eventually(seen, f"the conditions {wanted}")

    write(config("good", good))
    flags = [f"--port={port}", f"--model_config_file={file}", "--model_config_file_poll_wait_seconds=1"]
    server = (sys.executable, "-m", "model_server", *flags, "--load_retry_interval_micros=1000000")
    with monitor(etcd, "--", *server) as child:
        await until(registry, good=1, timeout=60)
        write(config("good", good), config("late", late))
        await see("BasePathMissing late", "OtherModelsFrozen", "ReloadBlocked late")
        saved_models.half_plus_two(good, 2)
        await eventually(lambda: "OtherModelsFrozen on i" in child.output, "the log")
        assert await registry.ready() == {("good", 1): ReadyState.READY}
        folder = saved_models.empty(late)
        await see("LoadRetrying late")
        await until(registry, good=2)
        saved_models.repair(folder)
        await until(registry, good=2, late=1)
        await see()
        for name in ("BasePathMissing", "OtherModelsFrozen", "ReloadBlocked", "LoadRetrying"):
            assert child.output.count(f"told  {name} on i: ") == child.output.count(f"no longer {name} on i: ") == 1
