"""Leases lost in bulk, on real processes under load: six instances, two models, short leases and graces."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from registry.keys import ReadyKey
from tests.support import saved_models
from tests.support.load import Load
from tests.support.stack import Stack
from tests.support.waiting import eventually

pytestmark = pytest.mark.scenario

OF = {"a": "m", "b": "m", "c": "m", "d": "n", "e": "n", "f": "n"}
LEASE = ("--lease-ttl", "2")
PLANE = (
    *LEASE,
    *("--lost-lease-grace", "2", "--bulk-loss-hold", "3", "--bulk-loss-share", "0.3"),
    *("--suspect-check-interval", "0.3", "--suspect-check-timeout", "2"),
)


class Fleet:
    """The stack with its servers' pids, which a killed monitor leaves behind."""

    def __init__(self, folder: Path) -> None:
        self.stack = Stack(folder, PLANE)
        self.pids: dict[str, int] = {}

    async def start(self, folder: Path, names: str) -> None:
        for model in {OF[name] for name in names}:
            saved_models.half_plus_two(folder / model)
        for name in names:
            self.stack.start_instance(name, {OF[name]: folder / OF[name]}, monitor_flags=LEASE)
        await self.stack.until_ready(*self.keys(names))
        self.pids |= {name: self.stack.instances[name].server_pid for name in names}

    def keys(self, names: str) -> list[ReadyKey]:
        return [ReadyKey(OF[name], 1, name) for name in names]

    def page(self, path: str = "/guard", port: int = 0) -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port or self.stack.http_port}{path}", timeout=5) as answer:
                return str(answer.read(), "utf-8")
        except urllib.error.HTTPError as error:
            return str(error.read(), "utf-8")
        except urllib.error.URLError as error:  # it is starting
            raise AssertionError(str(error)) from error

    def suspects(self, port: int = 0) -> dict[str, dict[str, Any]]:
        return {one["instance"]: one for one in json.loads(self.page(port=port))["suspects"]}

    def verdicts(self, port: int = 0) -> dict[str, str]:
        return {name: one["check"] for name, one in self.suspects(port).items()}

    def metric(self, name: str) -> float:
        lines = self.page("/metrics").splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"modelplane_{name}"))

    def kill(self, *names: str) -> None:
        for name in names:
            os.kill(self.pids[name], signal.SIGKILL)

    def kill_monitors(self, *names: str) -> None:
        for name in names:
            self.stack.instances[name].monitor.kill()

    def answered(self) -> dict[str, int]:
        """Requests that Envoy has sent to each instance."""
        rows = [line.split("::") for line in self.stack.envoy.admin("/clusters").splitlines()]
        totals = {(row[1], row[0]): int(row[3]) for row in rows if len(row) == 4 and row[2] == "rq_total"}
        return {
            name: sum(count for (address, _), count in totals.items() if address == instance.grpc)
            for name, instance in self.stack.instances.items()
        }

    def status(self) -> str:
        command = [sys.executable, "-m", "modelplane", "status", "--etcd", self.stack.etcd.endpoint]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path)
    try:
        yield fleet
    finally:
        fleet.stack.close()


async def test_no_loss_in_bulk_costs_a_request(fleet: Fleet, tmp_path: Path) -> None:
    """Etcd wiped; half of the monitors killed while another says goodbye; then servers of the killed ones; then all
    monitors and one more server. Waits for what the control plane says of each."""
    await fleet.start(tmp_path / "models", "abcdef")
    async with AsyncExitStack() as running:
        requests = (saved_models.predict_request(model, [1.0, 2.0, 5.0]) for model in "mn")
        m, n = [
            await running.enter_async_context(Load(fleet.stack.grpc, one, clients=3, rest=0.01)) for one in requests
        ]
        sent, removed = fleet.metric("xds_sent_total"), fleet.metric("xds_removed_total")
        fleet.stack.etcd.kill()
        fleet.stack.etcd.restart(empty=True)
        await fleet.stack.until_ready(*fleet.keys("abcdef"))
        await eventually(lambda: not fleet.suspects(), "every lease to be back")
        assert (fleet.metric("xds_sent_total"), fleet.metric("xds_removed_total")) == (sent, removed)

        fleet.kill_monitors("a", "b", "d")
        fleet.stack.instances["e"].monitor.send(signal.SIGTERM)
        await eventually(lambda: not fleet.stack.instances["e"].monitor.alive(), "the monitor that says goodbye to end")
        assert "e" not in fleet.page("/resources/EDS/n").partition('"resource"')[2].split('"hostname"')
        alive = dict.fromkeys("abd", "answers")
        await eventually(lambda: fleet.verdicts() == alive, "the killed monitors' servers to be checked")
        await eventually(lambda: fleet.suspects()["a"]["held"] == "it answers its checks", "the guard to say why")
        said = fleet.status()
        assert "LEASES LOST" in said, said
        rows = said.partition("LEASES LOST\n")[2].partition("\n\n")[0].splitlines()[1:]
        assert [row.split()[0] for row in rows] == ["a", "b", "d"], said
        before = fleet.answered()
        await m.more(60)
        assert fleet.answered()["a"] > before["a"], "it is used on"

        fleet.kill("a", "d")
        # The registry is healthy, for c and f write their leases on: what is proved dead is given up.
        await eventually(lambda: fleet.verdicts() == {"b": "answers"}, "the dead servers to be given up")

        fleet.kill_monitors("c", "f")
        await eventually(lambda: set(fleet.suspects()) == {"b", "c", "f"}, "all leases to be lost")
        # Nobody is left to show that the registry is healthy: not even what is proved dead is given up.
        fleet.kill("b")
        await eventually(lambda: fleet.verdicts()["b"] == "does not answer", "the dead server to be found out")
        await fleet_converged(fleet)
        before = fleet.answered()
        await m.more(60)
        await n.more(60)
        after = fleet.answered()
        assert after["b"] == before["b"], "it gets nothing new"
        assert after["c"] > before["c"]
        assert after["f"] > before["f"]
        assert {one["held"] for one in fleet.suspects().values()} <= {
            "lost in bulk",
            "the registry is not evidently healthy yet",
        }
        await one_that_starts_goes_on_with_it(fleet)
        assert fleet.metric("guard_active") == 1
    m.assert_all_ok(at_least=200)
    n.assert_all_ok(at_least=200)


async def fleet_converged(fleet: Fleet) -> None:
    def done() -> bool:
        return fleet.metric("converged_revision") >= fleet.metric("registry_revision")

    await eventually(done, "Envoy to know")


async def one_that_starts_goes_on_with_it(fleet: Fleet) -> None:
    """No monitor is left that could tell a new control plane of the servers; the old one is killed, and its list of
    suspects is not. Waits for Envoy to be connected to the new one."""
    stack = fleet.stack
    await eventually(lambda: '"keys"' in stack.etcd.ctl("get", "/modelplane/planes/plane-0/suspects"), "the list")
    removed_before = stack.plane.output.count("registry read")
    stack.plane.kill()
    stack.start_plane()
    await eventually(lambda: stack.plane.output.count("registry read") > removed_before, "the registry to be read")
    await eventually(lambda: fleet.metric("envoys") == 1, "Envoy to come back")
    assert set(fleet.suspects()) == {"b", "c", "f"}
    assert fleet.metric("xds_removed_total") == 0


async def test_a_control_plane_that_starts_in_a_wiped_registry_says_that_it_waits(fleet: Fleet, tmp_path: Path) -> None:
    """The registry is empty while the monitors are held up; waits for the new control plane to have read that, and
    then for it to serve."""
    await fleet.start(tmp_path / "models", "ab")
    async with Load(fleet.stack.grpc, saved_models.predict_request("m", [1.0, 2.0, 5.0]), rest=0.01) as load:
        for instance in fleet.stack.instances.values():
            instance.monitor.freeze()
        fleet.stack.plane.kill()
        fleet.stack.etcd.kill()
        fleet.stack.etcd.restart(empty=True)
        fleet.stack.start_plane("--empty-registry-grace", "3")
        said = "the registry holds no instance; monitors have 3 s to register"
        await eventually(lambda: fleet.page("/readyz").strip() == said, "the control plane to say that it waits")
        assert json.loads(fleet.page())["waiting"] == said
        for instance in fleet.stack.instances.values():
            instance.monitor.thaw()
        await eventually(lambda: fleet.page("/readyz").strip() == "ok", "the control plane to serve")
        await eventually(lambda: fleet.metric("envoys") == 1, "Envoy to come back")
        await load.more(50)
    load.assert_all_ok(at_least=100)
    assert fleet.metric("xds_removed_total") == 0
