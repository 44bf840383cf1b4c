"""A real Prometheus that reads a real fleet: every panel of the dashboards shows something, each alert is asked."""

from __future__ import annotations

import asyncio
import json
import shutil
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from registry.keys import ReadyKey
from registry.rollouts import Phase
from tests.support import saved_models
from tests.support.load import Load
from tests.support.operating import Operator, policy
from tests.support.processes import ChildProcess, free_port, wait_for_port
from tests.support.stack import Stack
from tests.support.waiting import eventually

PROMETHEUS = shutil.which("prometheus")
FOLDER = Path(__file__).parents[2] / "control_plane" / "observability"

pytestmark = [
    pytest.mark.scenario,
    pytest.mark.skipif(PROMETHEUS is None, reason="no prometheus on PATH (Debian: prometheus)"),
]

CANARY = {
    "strategy": "canary",
    "steps": [{"percent": 50, "duration": "1h"}],
    "gates": {"difference": {"share": "100%", "atMost": "1%"}},
}


class Prometheus:
    """With the project's own configuration, except for where the fleet is and how often it is read."""

    def __init__(self, folder: Path, targets: dict[str, list[str]]) -> None:
        config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms", "scrape_timeout": "500ms"}
        config["rule_files"] = [str(FOLDER / "alerts.yml")]
        assert {job["job_name"] for job in config["scrape_configs"]} == set(targets)
        for job in config["scrape_configs"]:
            job.pop("dns_sd_configs", None)
            job["static_configs"] = [{"targets": targets[job["job_name"]]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._port = free_port()
        self.child = ChildProcess(
            [
                str(PROMETHEUS),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'prometheus'}",
                f"--web.listen-address=127.0.0.1:{self._port}",
            ],
            folder / "prometheus.log",
        )
        wait_for_port(self._port, self.child)

    async def get(self, path: str, **query: str) -> Any:
        """The `data` of an answer of its API; an error fails."""
        url = f"http://127.0.0.1:{self._port}/api/v1/{path}?{urllib.parse.urlencode(query)}"

        def ask() -> Any:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]

        return await asyncio.to_thread(ask)

    async def ask(self, query: str) -> dict[tuple[str, ...], float]:
        """A query's samples by the values of their labels, sorted by the labels' names."""
        result = (await self.get("query", query=query))["result"]
        return {tuple(value for _, value in sorted(one["metric"].items())): float(one["value"][1]) for one in result}


def queries() -> Iterator[tuple[str, str]]:
    """Each panel's dashboard and title, and its query for all models."""
    for file in sorted((FOLDER / "grafana" / "dashboards").glob("*.json")):
        dashboard = json.loads(file.read_text())
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                yield (
                    f"{dashboard['title']}: {panel['title']}",
                    target["expr"].replace("$model", ".*").replace("$__rate_interval", "1m"),
                )


async def test_every_panel_shows_a_canary_at_work_and_alerts_see_a_control_plane_go(tmp_path: Path) -> None:
    """Waits for a canary's first step, then until every panel has data and both versions have theirs, then until a
    control plane that was ended is missed."""
    stack = Stack(tmp_path, ("--statistics-interval", "0.5", "--observe-percent", "100"))
    try:
        monitor = f"127.0.0.1:{free_port()}"
        stack.start_managed("a", monitor_flags=("--metrics-listen", monitor))
        prometheus = Prometheus(
            tmp_path,
            {
                "control-plane": [f"127.0.0.1:{stack.http_port}"],
                "monitor": [monitor],
                "envoy": [f"127.0.0.1:{stack.stats_port}"],
                "etcd": [stack.etcd.endpoint],
            },
        )
        try:
            await watch(stack, prometheus)
        finally:
            prometheus.child.stop()
    finally:
        stack.close()


async def watch(stack: Stack, prometheus: Prometheus) -> None:
    operator, base = Operator(stack.etcd.endpoint, stack.folder), stack.folder / "models" / "m"
    saved_models.half_plus_two(base, 1)
    await operator.apply(policy("m", base, rollout=CANARY), wait=True)
    await stack.until_ready(ReadyKey("m", 1, "a"))
    asked = list(queries())
    assert len(asked) > 25

    async def all_have() -> bool:
        without = [(panel, query) for panel, query in asked if not await prometheus.ask(query)]
        assert not without, without
        return True

    async def both_versions() -> bool:
        rates = await prometheus.ask("sum by (model, version) (rate(modelplane_model_requests_total[1m])) > 0")
        times = "histogram_quantile(0.99, sum by (version, le) (rate(modelplane_model_latency_seconds_bucket[1m])))"
        assert {("m", "1"), ("m", "2")} <= set(rates), rates
        assert {version for (version,), seconds in (await prometheus.ask(times)).items() if seconds > 0} >= {"1", "2"}
        compared = await prometheus.ask('rate(modelplane_comparisons_total{outcome="compared"}[1m]) > 0')
        assert compared, "nothing was compared"
        assert await prometheus.ask("sum by (phase) (modelplane_rollouts) > 0") == {("STEPPING",): 1}
        return True

    async with Load(stack.grpc, saved_models.predict_request("m", [2.0]), clients=2, rest=0.02) as load:
        await load.more(20)
        saved_models.half_plus_two(base, 2)
        await operator.until("m", Phase.STEPPING, version=2)
        await eventually(all_have, "every panel to have data", 90)
        await eventually(both_versions, "both versions to be told", 90)
    load.assert_all_ok()

    rules = [rule for group in (await prometheus.get("rules"))["groups"] for rule in group["rules"]]
    assert {rule["health"] for rule in rules} == {"ok"}
    assert not [rule["name"] for rule in rules if rule["state"] == "firing"]

    async def missed() -> bool:
        alerts = (await prometheus.get("alerts"))["alerts"]
        return "ControlPlaneDown" in {alert["labels"]["alertname"] for alert in alerts}

    assert not await missed()
    await asyncio.to_thread(stack.plane.stop)
    await eventually(missed, "the control plane to be missed", 30)
