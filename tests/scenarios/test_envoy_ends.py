"""What Kubernetes runs before it ends an Envoy, on a real one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
import yaml

from tests.scenarios.test_proxyless import through_envoy
from tests.support.registered import registered_in
from tests.support.stack import Stack
from tests.support.waiting import eventually

pytestmark = pytest.mark.scenario

MANIFEST = Path(__file__).parents[2] / "control_plane" / "kubernetes" / "envoy.yaml"


def pre_stop(admin_port: int) -> list[str]:
    """The manifest's command, for another admin port; the time in which a cluster forgets an address is left out."""
    (deployment,) = (each for each in yaml.safe_load_all(MANIFEST.read_text()) if each["kind"] == "Deployment")
    (envoy,) = deployment["spec"]["template"]["spec"]["containers"]
    command: list[str] = envoy["lifecycle"]["preStop"]["exec"]["command"]
    assert command[2].count("/9901") == command[2].count("sleep 25") == 1
    return [*command[:2], command[2].replace("/9901", f"/{admin_port}").replace("sleep 25", ":")]


async def test_envoy_is_ended_when_nothing_is_in_flight(stack: Stack) -> None:
    """Waits for a request that takes two seconds, which is asked before the drain; others are answered meanwhile."""
    async with registered_in(stack, "a") as fleet, grpc.aio.insecure_channel(stack.grpc) as channel:
        await fleet.converged(await fleet.register("a", 1))
        fleet.upstreams["a"].delay = 2
        slow = asyncio.create_task(through_envoy(channel))
        await eventually(lambda: fleet.upstreams["a"].active == 1, "the request to be in flight")
        fleet.upstreams["a"].delay = 0
        ending = await asyncio.create_subprocess_exec(*pre_stop(stack.admin_port), stdout=asyncio.subprocess.PIPE)
        waited = asyncio.create_task(ending.communicate())
        meanwhile = []
        while not (slow.done() or waited.done()):
            meanwhile.append(await through_envoy(channel))
        said, _ = await asyncio.wait_for(waited, 10)
        assert b"200 OK" in said
        assert ending.returncode == 0
        # As the kubelet does next; nothing that was asked before is lost.
        await asyncio.to_thread(stack.envoy.child.stop)
        assert (await slow)[1] == "OK"
        assert {one[1] for one in meanwhile} == {"OK"}
