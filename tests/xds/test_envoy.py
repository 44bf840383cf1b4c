"""The xDS and load report servers with the real Envoy."""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from functools import partial

import pytest

from control_plane.xds.events import Disconnected, HeldTooLong, Refused
from control_plane.xds.limits import Limits
from tests.support.processes import free_port
from tests.support.waiting import eventually
from tests.xds.client import CDS, ECDS, EDS, LDS
from tests.xds.world import (
    STATIC,
    Backend,
    Plane,
    Probe,
    ask,
    assignment,
    eds_cluster,
    listener,
    plane_and_envoy,
    router,
)

pytestmark = pytest.mark.scenario


async def test_clusters_added_and_removed_under_load(tmp_path):
    """Waits until each of 100 models answers, each probed from before it exists; nothing but 404 then 200. All the
    while the router's default moves to the newest model, and requests that name none are answered every time."""
    port = free_port()
    async with Backend().running() as backend:
        first = (eds_cluster("m0"), assignment("m0", backend.port), router("m0"), listener(port))
        async with plane_and_envoy(tmp_path, *first) as (plane, envoy):
            wrong: list[tuple[str, int]] = []
            running = True

            async def probe_one(name: str) -> None:
                async with Probe(port) as probe:
                    seen = 404
                    while seen != 200:
                        status = await probe.get(cluster=name)
                        if status not in (404, 200):
                            wrong.append((name, status))
                        seen = status
                        await asyncio.sleep(0.002)
                    for _ in range(20):
                        status = await probe.get(cluster=name)
                        if status != 200:
                            wrong.append((name, status))

            async def probe_default() -> int:
                count = 0
                async with Probe(port) as probe:
                    while running:
                        status = await probe.get()
                        count += 1
                        if status != 200:
                            wrong.append(("default", status))
                return count

            default = asyncio.create_task(probe_default())
            probes = []
            for number in range(1, 101):
                name = f"m{number}"
                probes.append(asyncio.create_task(probe_one(name)))
                plane.change(eds_cluster(name), assignment(name, backend.port), router(name))
                await asyncio.sleep(0.005)
            await asyncio.gather(*probes)
            removes = [(kind, f"m{number}") for number in range(1, 100) for kind in (CDS, EDS)]
            last = plane.change(removes=removes)
            await eventually(lambda: plane.converged(last), "all removals to be acknowledged")
            running = False
            assert await default > 20
            assert wrong == []
            assert not [event for event in plane.events if isinstance(event, HeldTooLong | Refused)]
            assert envoy.stats("cluster_manager.active_clusters")["cluster_manager.active_clusters"] == 2 + STATIC


async def test_a_restarted_control_plane_sends_nothing_that_has_not_changed(tmp_path):
    """Waits until Envoy has come back to a control plane that was restarted, twice: with nothing changed, and with one
    endpoint changed meanwhile."""
    port = free_port()
    async with Backend().running() as one, Backend().running() as two:
        resources = [eds_cluster("a"), assignment("a", one.port), router("a"), listener(port)]
        resources += [each for n in range(20) for each in (eds_cluster(f"m{n}"), assignment(f"m{n}", one.port))]
        async with plane_and_envoy(tmp_path, *resources) as (plane, _):
            await eventually(lambda: plane.converged(plane.revision), "Envoy to have everything")
            for changed in (False, True):
                await plane.stop()
                assert await ask(port) == 200
                if changed:
                    plane.table.update([assignment("a", two.port)], [], plane.revision)
                await plane.start()
                await eventually(
                    lambda: plane.xds.streams and plane.xds.streams[0].types.keys() >= {CDS, EDS, LDS, ECDS},
                    "Envoy to subscribe again",
                )
                await eventually(lambda: plane.converged(plane.revision), "Envoy to be up to date")
                assert plane.sent() == int(changed)
                assert await ask(port) == 200
            assert two.served == 1


async def test_a_changed_cluster_becomes_active(tmp_path):
    """Waits until a cluster whose definition changed, and its CDS ACK, are through: without its EDS again it would
    warm for ever."""
    port = free_port()
    async with Backend().running() as backend:
        resources = (eds_cluster("a"), assignment("a", backend.port), router("a"), listener(port))
        async with plane_and_envoy(tmp_path, *resources) as (plane, envoy):
            revision = plane.change(eds_cluster("a", timeout_ms=700))
            await eventually(lambda: plane.converged(revision), "the change to be acknowledged")
            assert envoy.stats("warming_clusters")["cluster_manager.warming_clusters"] == 0
            assert '"0.700s"' in envoy.admin("/config_dump?resource=dynamic_active_clusters")
            assert await ask(port) == 200


async def test_a_bad_cluster_does_not_hold_up_the_others(tmp_path):
    """Waits until the good cluster of a response that Envoy refuses serves, and until a mended one is acknowledged."""
    port = free_port()
    async with Backend().running() as backend:
        resources = (eds_cluster("a"), assignment("a", backend.port), router("a"), listener(port))
        async with plane_and_envoy(tmp_path, *resources) as (plane, envoy):
            await eventually(lambda: plane.converged(plane.revision), "Envoy to have everything")
            both = [assignment(name, backend.port) for name in ("bad", "good")]
            plane.change(eds_cluster("bad", bad=True), eds_cluster("good"), *both, router("good"))

            def blamed() -> list[Refused]:
                return [event for event in plane.events if isinstance(event, Refused) and not event.searching]

            await eventually(blamed, "the one to blame to be found")
            assert [(event.type_url, event.names, event.models) for event in blamed()] == [(CDS, ("bad",), ("bad",))]
            assert "RetryBudget" in blamed()[0].message
            await eventually(lambda: "good" in envoy.admin("/clusters"), "the good cluster")
            assert await ask(port, cluster="good") == 200
            assert await ask(port) == 200
            assert plane.table.withheld(CDS, "bad")
            await eventually(lambda: plane.converged(plane.revision), "what is quarantined to count as settled")
            revision = plane.change(eds_cluster("bad"), eds_cluster("good", timeout_ms=900))
            await eventually(lambda: plane.converged(revision), "the mended cluster to be acknowledged")
            assert await ask(port, cluster="bad") == 200


async def test_an_envoy_that_hangs_is_declared_dead(tmp_path):
    """Waits until a stopped Envoy is given up, by pings every second instead of every ten, and until it is back."""
    options = {"grpc.keepalive_time_ms": 1000, "grpc.keepalive_timeout_ms": 500, "grpc.http2.ping_timeout_ms": 500}
    resources = (eds_cluster("a"), assignment("a", 1), router("a"), listener(free_port()))
    async with plane_and_envoy(tmp_path, *resources, options=options) as (plane, envoy):
        envoy.child.send(signal.SIGSTOP)
        try:
            await eventually(lambda: not plane.xds.nodes, "Envoy to be given up", timeout=10)
        finally:
            envoy.child.send(signal.SIGCONT)
        assert isinstance(plane.events[-1], Disconnected)
        assert "no longer answers" in plane.events[-1].detail
        await eventually(lambda: plane.converged(plane.revision), "Envoy to be back")


async def test_requests_in_flight_of_a_draining_endpoint(tmp_path):
    """Waits for load reports: nothing is known before them, then what is in flight, and 0 when it has ended."""
    port = free_port()
    async with Backend().running() as one, Backend().running() as two:
        resources = (eds_cluster("a"), assignment("a", one.port, two.port), router("a"), listener(port))
        async with plane_and_envoy(tmp_path, *resources) as (plane, _):
            slow: list[asyncio.Task[int]] = []
            # As many as it takes: each of Envoy's threads takes its own turns.
            while not (one.waiting and two.waiting):
                slow.append(asyncio.create_task(ask(port, "/slow")))
                await eventually(lambda: one.waiting + two.waiting == len(slow), "a request to be in flight")
            waiting = one.waiting
            assert plane.loads.in_flight("i") is None
            revision = plane.change(assignment("a", one.port, two.port, draining=[one.port]))
            drain = {"i": frozenset({("a", "127.0.0.1", one.port)})}
            plane.loads.ask_about(["a"])
            plane.loads.set_draining(drain)
            assert plane.loads.in_flight("i") is None
            await eventually(lambda: plane.converged(revision), "Envoy to know of the drain")
            await eventually(lambda: plane.loads.in_flight("i") == waiting, "what is in flight")
            served = one.served
            assert await ask(port) == await ask(port) == 200
            assert one.served == served
            one.release.set()
            await eventually(lambda: plane.loads.in_flight("i") == 0, "the drain to end")
            two.release.set()
            assert await asyncio.gather(*slow) == [200] * len(slow)
            plane.loads.ask_about([])
            plane.loads.set_draining({})
            assert plane.loads.in_flight("i") is None
            plane.loads.ask_about(["a"])
            plane.loads.set_draining(drain)
            await eventually(lambda: plane.loads.in_flight("i") == 0, "a drain of an idle endpoint")


async def test_other_drains_that_begin_all_the_time_do_not_keep_an_envoy_from_reporting(tmp_path):
    """Waits for what is in flight while Envoy would be asked for something else every few milliseconds. Each question
    makes it begin its interval anew, so that it would never report."""
    async with Backend().running() as one:
        resources = (eds_cluster("a"), assignment("a", one.port), router("a"), listener(free_port()))
        async with plane_and_envoy(tmp_path, *resources, report_seconds=0.2) as (plane, _):
            numbers = itertools.count()

            def known() -> bool:
                plane.loads.ask_about(["a", f"b{next(numbers)}"])
                return plane.loads.in_flight("i") == 0

            plane.loads.ask_about(["a"])
            plane.loads.set_draining({"i": frozenset({("a", "127.0.0.1", one.port)})})
            deadline = time.monotonic() + 20
            while not known():
                assert time.monotonic() < deadline, f"asked {next(numbers)} times"
                await asyncio.sleep(0.005)


async def test_an_envoy_of_two_control_planes_reports_to_the_one_that_configures_it(tmp_path):
    """Waits until Envoy, whose two streams take turns among the control planes, has both with the same one, and again
    after that one was restarted; else the one that configures it would never hear what is in flight."""
    other = Plane()
    async with Backend().running() as one:
        resources = (eds_cluster("a"), assignment("a", one.port), router("a"), listener(free_port()))
        await other.start()
        try:
            other.change(*resources)
            async with plane_and_envoy(tmp_path, *resources, others=[other]) as (plane, _):
                drain = {"i": frozenset({("a", "127.0.0.1", one.port)})}

                def reports_where_it_is_configured() -> bool:
                    configuring = [each for each in (plane, other) if each.xds.nodes]
                    return [each.loads.in_flight("i") for each in configuring] == [0]

                def start_drain() -> None:
                    for each in (plane, other):
                        each.loads.ask_about(["a"])
                        each.loads.set_draining(drain)

                start_drain()
                await eventually(reports_where_it_is_configured, "both streams to be with one control plane")
                first = plane if plane.xds.nodes else other
                await first.stop()
                await first.start()
                start_drain()
                await eventually(reports_where_it_is_configured, "both streams to be with one control plane again")
        finally:
            await other.stop()


def own_cluster(bootstrap: str) -> str:
    """No clusters from the control plane, but one of its own whose endpoints come from there."""
    lines = [line for line in bootstrap.splitlines() if "cds_config" not in line]
    cluster = (
        "    - name: a",
        "      type: EDS",
        "      connect_timeout: 1s",
        "      eds_cluster_config: { eds_config: { ads: {}, resource_api_version: V3 } }",
    )
    place = lines.index("  clusters:") + 1
    return "\n".join((*lines[:place], *cluster, *lines[place:])) + "\n"


async def test_an_envoy_with_clusters_of_its_own_holds_no_drain_up_for_ever(tmp_path):
    """Waits until what an Envoy acknowledges counts that never asks for clusters."""
    port = free_port()
    async with Backend().running() as one, Backend().running() as two:
        resources = (eds_cluster("a"), assignment("a", one.port, two.port), listener(port, discovered=False))
        limits = Limits(away_seconds=4.0)
        async with plane_and_envoy(tmp_path, *resources, edit_bootstrap=own_cluster, limits=limits) as (plane, _):
            assert await ask(port, cluster="a") == 200
            assert not plane.converged(plane.revision)
            await eventually(lambda: plane.converged(plane.revision), "the Envoy to count")
            last = plane.change(assignment("a", one.port, two.port, draining=[two.port]))
            await eventually(lambda: plane.converged(last), "the drain to be acknowledged")
            served = two.served
            assert [await ask(port, cluster="a") for _ in range(6)] == [200] * 6
            assert two.served == served


async def answers(port: int, cluster: str) -> bool:
    return await ask(port, cluster=cluster) == 200


async def test_new_clusters_get_their_endpoints_while_no_change_of_others_may_be_sent(tmp_path):
    """Waits until each of 20 new models is answered, with a window for EDS that is always full."""
    port = free_port()
    limits = Limits(endpoint_window=0, endpoint_patience_seconds=600.0)
    async with Backend().running() as backend:
        resources = (eds_cluster("a"), assignment("a", backend.port), listener(port, discovered=False))
        async with plane_and_envoy(tmp_path, *resources, limits=limits) as (plane, _):
            for number in range(20):
                name = f"m{number}"
                plane.change(eds_cluster(name), assignment(name, backend.port))
                plane.change(assignment("a", backend.port, port + number))
                await eventually(partial(answers, port, name), f"{name} to be answered")
            assert not plane.converged(plane.revision), "the endpoints that Envoy has an older state of had to wait"
