"""What control planes, monitors and Envoys show of themselves."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

from tests.support import saved_models
from tests.support.processes import free_port
from tests.support.stack import Stack
from tests.support.waiting import eventually

pytestmark = pytest.mark.scenario


def get(address: str, body: bytes | None = None) -> str:
    with urllib.request.urlopen(f"http://{address}", body, timeout=10) as answer:
        return answer.read().decode()


_FOLDER = Path(__file__).parents[2] / "control_plane" / "observability"


def names(exposed: str) -> set[str]:
    """What can be asked for, of metrics without a sample too."""
    found = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)", exposed, re.MULTILINE):
        found |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"} if kind == "histogram" else {name}
    return found


def used() -> set[str]:
    """The metrics of alerts and dashboards."""
    files = [_FOLDER / "alerts.yml", *(_FOLDER / "grafana" / "dashboards").glob("*.json")]
    texts = [json.dumps(json.loads(file.read_text())["panels"]) for file in files[1:]]
    assert len(texts) == 4
    return set(re.findall(r"\bmodelplane_\w+", " ".join([files[0].read_text(), *texts])))


def test_each_alert_has_a_summary_and_a_runbook() -> None:
    document = yaml.safe_load((_FOLDER / "alerts.yml").read_text())
    headings = (_FOLDER.parents[1] / "docs" / "observability.md").read_text().lower()
    for rule in document["groups"][0]["rules"]:
        assert rule["annotations"]["summary"]
        assert "### " + rule["annotations"]["runbook"].rpartition("#")[2] + "\n" in headings
    assert yaml.safe_load((_FOLDER / "prometheus.yml").read_text())["rule_files"] == ["alerts.yml"]


async def test_a_monitor_and_a_control_plane_show_what_they_do(tmp_path: Path) -> None:
    """Waits until a model is READY, at the monitor and in the catalog, and until its base path was missed."""
    stack = Stack(tmp_path)
    try:
        saved_models.half_plus_two(tmp_path / "m")
        monitor = f"127.0.0.1:{free_port()}/metrics"
        stack.start_instance("a", {"m": tmp_path / "m"}, monitor_flags=("--metrics-listen", monitor.split("/")[0]))
        plane = f"127.0.0.1:{stack.http_port}/metrics"
        await eventually(lambda: 'modelplane_endpoints{state="READY"} 1.0' in get(plane), "the endpoint", 60)
        told = get(monitor)
        assert not used() - names(told) - names(get(plane))
        assert 'modelplane_monitor_versions{state="READY"} 1.0' in told
        assert "modelplane_monitor_lease_held 1.0" in told
        assert re.search(r'modelplane_monitor_probes_total{result="\w+"} [1-9]', told)

        def timed() -> bool:
            return re.search(r"modelplane_convergence_seconds_count [1-9]", get(plane)) is not None

        await eventually(timed, "a convergence to be timed", 20)

        def missing() -> bool:
            return 'modelplane_monitor_conditions{condition="BasePathMissing"} 1.0' in get(monitor)

        assert "modelplane_monitor_conditions{" not in told
        (tmp_path / "m").rename(tmp_path / "elsewhere")
        await eventually(missing, "the base path to be missed", 20)
        (tmp_path / "elsewhere").rename(tmp_path / "m")
        await eventually(lambda: not missing(), "it to be there again", 20)

        stats = f"127.0.0.1:{stack.stats_port}"
        own = get(f"{stats}/stats/prometheus?filter=cluster")
        assert 'envoy_http_downstream_rq_time_bucket{envoy_http_conn_manager_prefix="grpc"' in own
        assert 'envoy_cluster_name="@xds"' in own
        # Clusters of models, of which there may be tens of thousands.
        assert not re.findall(r'envoy_cluster_name="(?:m|m@1|@rest/.*)"', own)
        for refused in ("/", "/stats", "/quitquitquit", "/stats/prometheus/../quitquitquit"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                get(stats + refused)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(f"{stats}/stats/prometheus", b"")
    finally:
        stack.close()
