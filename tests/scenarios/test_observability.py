"""What control planes, monitors and Envoys show of themselves."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path

import pytest

from tests.support import saved_models
from tests.support.processes import free_port
from tests.support.stack import Stack
from tests.support.waiting import eventually

pytestmark = pytest.mark.scenario


def get(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}", timeout=10) as answer:
        return answer.read().decode()


async def test_a_monitor_and_a_control_plane_show_what_they_do(tmp_path: Path) -> None:
    """Waits until a model is READY, at the monitor and in the catalog."""
    stack = Stack(tmp_path)
    try:
        saved_models.half_plus_two(tmp_path / "m")
        monitor = f"127.0.0.1:{free_port()}/metrics"
        stack.start_instance("a", {"m": tmp_path / "m"}, monitor_flags=("--metrics-listen", monitor.split("/")[0]))
        plane = f"127.0.0.1:{stack.http_port}/metrics"
        await eventually(lambda: 'modelplane_endpoints{state="READY"} 1.0' in get(plane), "the endpoint", 60)
        told = get(monitor)
        assert 'modelplane_monitor_versions{state="READY"} 1.0' in told
        assert "modelplane_monitor_lease_held 1.0" in told
        assert re.search(r'modelplane_monitor_probes_total{result="\w+"} [1-9]', told)

        def timed() -> bool:
            return re.search(r"modelplane_convergence_seconds_count [1-9]", get(plane)) is not None

        await eventually(timed, "a convergence to be timed", 20)
    finally:
        stack.close()
