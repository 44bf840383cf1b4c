"""Each alert's rule against made-up series, by Prometheus' own promtool: what it fires for, and what it must bear."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ALERTS = Path(__file__).parents[2] / "control_plane" / "observability" / "alerts.yml"
PROMTOOL = shutil.which("promtool")

needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="no promtool on PATH (Debian: prometheus)")


@dataclass(frozen=True)
class Case:
    """What is scraped each minute, in promtool's notation, and whether the alert fires in the 10th."""

    alert: str
    series: dict[str, str]
    fires: bool


CASES = (
    Case("ControlPlaneDown", {'up{job="control-plane",instance="a"}': "1 0x12", 'up{instance="b"}': "1x12"}, True),
    Case("ControlPlaneDown", {'up{job="control-plane",instance="a"}': "1x8 0 1x3"}, False),
    Case("ControlPlaneDown", {'up{job="monitor",instance="a"}': "0x12"}, False),
    Case("RegistryAway", {'modelplane_registry_connected{instance="a"}': "1 0x12"}, True),
    Case("RegistryAway", {'modelplane_registry_connected{instance="a"}': "1x12"}, False),
    Case("EtcdMemberDown", {'up{job="etcd",instance="a"}': "1 0x12", 'up{job="etcd",instance="b"}': "1x12"}, True),
    Case("EtcdMemberDown", {'up{job="etcd",instance="a"}': "1x12", 'up{job="monitor"}': "0x12"}, False),
    Case("EnvoyDown", {'up{job="envoy",instance="a"}': "1 0x12"}, True),
    Case("EnvoyDown", {'up{job="envoy",instance="a"}': "1x8 0 1x3"}, False),
    Case("NoLeader", {'modelplane_leads{instance="a"}': "0x12", 'modelplane_leads{instance="b"}': "1 0x12"}, True),
    Case("NoLeader", {'modelplane_leads{instance="a"}': "1x5 0x7", 'modelplane_leads{instance="b"}': "0x5 1x7"}, False),
    Case("ResourcesQuarantined", {'modelplane_quarantined_resources{type="Cluster"}': "0x5 2x7"}, True),
    Case("ResourcesQuarantined", {'modelplane_quarantined_resources{type="Cluster"}': "2x5 0x7"}, False),
    # One Envoy has stopped acknowledging, whether more comes or not.
    Case("NotConverging", {"modelplane_registry_revision": "7 9x12", "modelplane_converged_revision": "7x12"}, True),
    Case("NotConverging", {"modelplane_registry_revision": "7+1x12", "modelplane_converged_revision": "7x12"}, True),
    # A busy fleet: each look finds something on its way, which has arrived by the next look.
    Case("NotConverging", {"modelplane_registry_revision": "7+9x12", "modelplane_converged_revision": "0+9x12"}, False),
    # Etcd's data went back: revisions begin anew.
    Case(
        "NotConverging",
        {"modelplane_registry_revision": "900x7 5x5", "modelplane_converged_revision": "900x7 5x5"},
        False,
    ),
    Case(
        "EnvoyAway",
        {'modelplane_away_envoys{instance="a"}': "0x12", 'modelplane_away_envoys{instance="b"}': "1x12"},
        True,
    ),
    Case("EnvoyAway", {"modelplane_away_envoys": "1x8 0x4"}, False),
    Case("LeasesLost", {"modelplane_suspect_instances": "0x5 1x7"}, True),
    Case("LeasesLost", {"modelplane_suspect_instances": "3x8 0x4"}, False),
    Case("GuardActive", {"modelplane_guard_active": "0x5 1x7"}, True),
    Case("GuardActive", {"modelplane_guard_active": "1x8 0x4"}, False),
    Case("EndpointsFailing", {'modelplane_endpoints{state="FAILING"}': "0x5 1x7"}, True),
    Case("EndpointsFailing", {'modelplane_endpoints{state="DRAINING"}': "1x12"}, False),
    # The leader tells.
    Case(
        "RolloutEnded",
        {
            'modelplane_rollouts{phase="FAILED",instance="a"}': "0x8 1x4",
            'modelplane_rollouts{phase="FAILED",instance="b"}': "0x12",
        },
        True,
    ),
    Case("RolloutEnded", {'modelplane_rollouts{phase="ROLLED_BACK"}': "0x8 1x4"}, True),
    Case("RolloutEnded", {'modelplane_rollouts{phase="ROLLED_BACK"}': "1x8 0x4"}, False),
    Case("RolloutEnded", {'modelplane_rollouts{phase="STEPPING"}': "1x12"}, False),
    Case("InstanceTrouble", {'modelplane_monitor_conditions{condition="PredictHangs"}': "_x3 1x9"}, True),
    Case("InstanceTrouble", {'modelplane_monitor_conditions{condition="PredictHangs"}': "_x6 1x2 _x4"}, False),
    Case("InstanceTrouble", {'modelplane_monitor_conditions{condition="DrainAsked"}': "1x12"}, False),
    Case("ModelsWithoutPlace", {"modelplane_waiting_models": "0x5 2x7"}, True),
    Case("ModelsWithoutPlace", {"modelplane_waiting_models": "2x8 0x4"}, False),
    # Half of each version's requests are told by each of two control planes.
    Case(
        "ModelErrors",
        {
            'modelplane_model_requests_total{model="m",version="2",instance="a"}': "0+600x12",
            'modelplane_model_requests_total{model="m",version="2",instance="b"}': "0+600x12",
            'modelplane_model_errors_total{model="m",version="2",instance="a"}': "0+90x12",
            'modelplane_model_errors_total{model="m",version="2",instance="b"}': "0x12",
        },
        True,
    ),
    Case(
        "ModelErrors",
        {
            'modelplane_model_requests_total{model="m",version="2",instance="a"}': "0+600x12",
            'modelplane_model_errors_total{model="m",version="2",instance="a"}': "0+20x12",
        },
        False,
    ),
    # Asked by nobody: 0 of 0.
    Case(
        "ModelErrors",
        {
            'modelplane_model_requests_total{model="m",version="1"}': "50x12",
            'modelplane_model_errors_total{model="m",version="1"}': "50x12",
        },
        False,
    ),
)


def rules() -> dict[str, dict[str, object]]:
    """By name."""
    return {rule["alert"]: rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]}


def promtool(*arguments: str) -> None:
    assert PROMTOOL
    done = subprocess.run((PROMTOOL, *arguments), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    for fires in (True, False):
        assert {case.alert for case in CASES if case.fires is fires} == set(rules())


def test_grafana_knows_how_often_prometheus_reads() -> None:
    """Without it Grafana draws a point every 15 s, and what is over sooner is not seen."""
    scraped = yaml.safe_load(ALERTS.with_name("prometheus.yml").read_text())["global"]["scrape_interval"]
    provisioned = ALERTS.parent / "grafana" / "provisioning" / "datasources" / "prometheus.yml"
    (source,) = yaml.safe_load(provisioned.read_text())["datasources"]
    assert source["jsonData"]["timeInterval"] == scraped


@needs_promtool
def test_prometheus_takes_the_files() -> None:
    promtool("check", "rules", str(ALERTS))
    promtool("check", "config", str(ALERTS.with_name("prometheus.yml")))


@needs_promtool
@pytest.mark.parametrize("fires", [True, False])
def test_alerts_fire_for_what_needs_somebody_and_for_nothing_else(fires: bool, tmp_path: Path) -> None:
    tests = []
    for case in CASES:
        if case.fires is not fires:
            continue
        test: dict[str, object] = {
            "interval": "1m",
            "input_series": [{"series": series, "values": values} for series, values in case.series.items()],
            # Whether it fires; with which labels is the expression's business.
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{case.alert}",alertstate="firing"}})',
                    "eval_time": "10m",
                    "exp_samples": [{"labels": "{}", "value": 1}] if case.fires else [],
                }
            ],
        }
        tests.append(test)
    file = tmp_path / "tests.yml"
    # JSON is YAML.
    file.write_text(json.dumps({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", str(file))
