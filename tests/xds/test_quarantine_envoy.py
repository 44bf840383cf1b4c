"""Quarantine with real Envoys: who refuses what, what that costs the others, and how it ends."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from envoy.config.endpoint.v3 import endpoint_pb2

from control_plane.envoy_files import render_bootstrap
from control_plane.resources.resource import Resource, pack
from control_plane.xds.events import Refused
from tests.support.envoy import Envoy
from tests.support.processes import free_port
from tests.support.waiting import eventually
from tests.xds.client import CDS, EDS, LDS
from tests.xds.world import Backend, Plane, ask, assignment, eds_cluster, listener

pytestmark = pytest.mark.scenario

EXTENSIONS = "type.googleapis.com/envoy.extensions.filters"
BUDGET = "Cluster.circuit_breakers.thresholds[0].retry_budget.budget_percent.value"


def bad_assignment(name: str) -> Resource:
    message = endpoint_pb2.ClusterLoadAssignment(cluster_name=name)
    message.endpoints.add().lb_endpoints.add().load_balancing_weight.value = 0
    return pack(name, message, model=name)


def own_listener(port: int) -> str:
    """An override of the bootstrap: several Envoys on one host can't share one that the control plane gives them."""
    to = {"cluster_header": "x-cluster", "cluster_not_found_response_code": "NOT_FOUND"}
    route = {"match": {"prefix": "/"}, "route": to}
    http = {
        "@type": f"{EXTENSIONS}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "test",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{EXTENSIONS}.http.router.v3.Router"},
            }
        ],
    }
    one = {
        "name": "own",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "hcm", "typed_config": http}]}],
    }
    return json.dumps({"static_resources": {"listeners": [one]}})


@asynccontextmanager
async def running(plane: Plane, folder: Path, name: str) -> AsyncIterator[tuple[Envoy, int]]:
    """An Envoy that is ready, and the port of its own listener."""
    admin, port = free_port(), free_port()
    bootstrap = render_bootstrap([f"127.0.0.1:{plane.port}"], admin=f"127.0.0.1:{admin}", node_id=name)
    envoy = await asyncio.to_thread(Envoy, folder, bootstrap, admin, name=name, override=own_listener(port))
    try:
        await envoy.ready()
        yield envoy, port
    finally:
        await asyncio.to_thread(envoy.close)


@asynccontextmanager
async def two_envoys(folder: Path, *resources: Resource) -> AsyncIterator[tuple[Plane, list[int]]]:
    """A control plane that serves these resources, and the ports of two Envoys that have them."""
    async with AsyncExitStack() as stack:
        plane = Plane()
        await plane.start()
        stack.push_async_callback(plane.stop)
        plane.change(*resources)
        ports = [(await stack.enter_async_context(running(plane, folder, name)))[1] for name in ("one", "two")]
        await eventually(lambda: len(plane.xds.nodes) == 2 and plane.converged(plane.revision), "both to have all")
        yield plane, ports


async def asked(ports: list[int], name: str) -> list[int]:
    return [await ask(port, cluster=name) for port in ports]


async def test_one_bad_resource_among_a_thousand_models(tmp_path, caplog):
    """Waits until the bad one is named, until both Envoys have the 999 others, and until both have the mended one."""
    caplog.set_level(logging.ERROR, "control_plane")
    async with (
        Backend().running() as backend,
        two_envoys(tmp_path, eds_cluster("a"), assignment("a", backend.port)) as (plane, ports),
    ):
        names = [f"m{number}" for number in range(1000)]
        started = time.monotonic()
        revision = plane.change(
            *(eds_cluster(name, bad=name == "m500") for name in names),
            *(assignment(name, backend.port) for name in names),
        )
        record = await eventually(lambda: plane.table.withheld(CDS, "m500"), "the bad one to be named")
        named = time.monotonic() - started
        assert (record.model, record.field, record.last_good_version) == ("m500", BUDGET, None)
        assert record.node in ("one", "two")
        await eventually(lambda: plane.converged(revision), "both to have all the others")
        print(f"named after {named:.2f} s, 999 others on two Envoys after {time.monotonic() - started:.2f} s")
        blamed = {event.names for event in plane.events if isinstance(event, Refused) and event.version}
        assert blamed == {("m500",)}
        for name in ("m0", "m499", "m501", "m999", "a"):
            assert await asked(ports, name) == [200, 200], name
        assert await asked(ports, "m500") == [404, 404]
        (line,) = [entry.getMessage() for entry in caplog.records]
        for part in ("model m500", "CDS m500", record.version, BUDGET, record.node, "withheld"):
            assert part in line
        sent = plane.sent()
        revision = plane.change(eds_cluster("m500"))
        await eventually(lambda: plane.converged(revision), "both to have the mended one")
        assert await asked(ports, "m500") == [200, 200]
        assert not plane.table.quarantined
        assert plane.sent() - sent <= 6, "a cluster and its endpoints, and those once more, to each"


async def test_a_bad_update_of_a_model_that_serves(tmp_path):
    """Waits until a cluster and a load assignment that Envoy refuses are quarantined, until an Envoy that connects
    later serves both models as the others do, and until newer versions of both are acknowledged by all three."""
    async with Backend().running() as old, Backend().running() as new:
        resources = [each for name in "ab" for each in (eds_cluster(name), assignment(name, old.port))]
        async with two_envoys(tmp_path, *resources) as (plane, ports):
            good = {CDS: eds_cluster("a").version, EDS: assignment("b", old.port).version}
            plane.change(eds_cluster("a", bad=True), bad_assignment("b"))
            bad = [(CDS, "a"), (EDS, "b")]
            await eventually(lambda: plane.table.quarantined.keys() == set(bad), "both to be named")
            for key in bad:
                assert plane.table.quarantined[key].last_good_version == good[key[0]]
            assert "load_balancing_weight" in plane.table.quarantined[EDS, "b"].field
            await eventually(lambda: plane.converged(plane.revision), "what is quarantined to count as settled")
            assert await asked(ports, "a") == await asked(ports, "b") == [200, 200]
            async with running(plane, tmp_path, "three") as (_, third):
                await eventually(lambda: len(plane.xds.nodes) == 3 and plane.converged(plane.revision), "the third")
                assert await asked([third], "a") == await asked([third], "b") == [200]
                assert plane.table.quarantined.keys() == set(bad)
                served = new.served
                revision = plane.change(eds_cluster("a", timeout_ms=900), assignment("b", new.port))
                await eventually(lambda: plane.converged(revision), "all three to have the new versions")
                assert not plane.table.quarantined
                assert await asked([*ports, third], "a") == await asked([*ports, third], "b") == [200] * 3
                assert new.served == served + 3


async def test_a_listener_that_one_envoy_cannot_open_is_opened_by_the_next(tmp_path):
    """Waits until a listener whose port is taken on the first Envoy's host is quarantined, and until a second Envoy,
    where the port is free, has opened it: what one refuses for reasons of its own is not withheld from the others."""
    port = free_port()
    async with AsyncExitStack() as stack:
        backend = await stack.enter_async_context(Backend().running())
        plane = Plane()
        await plane.start()
        stack.push_async_callback(plane.stop)
        plane.change(eds_cluster("a"), assignment("a", backend.port))
        await stack.enter_async_context(running(plane, tmp_path, "one"))
        blocker = await asyncio.start_server(lambda *_: None, "127.0.0.1", port)
        plane.change(listener(port, discovered=False))
        record = await eventually(lambda: plane.table.withheld(LDS, "http"), "the listener to be refused")
        assert "cannot bind" in record.message
        blocker.close()
        await blocker.wait_closed()
        await stack.enter_async_context(running(plane, tmp_path, "two"))
        await eventually(lambda: not plane.table.quarantined, "the second to have taken it")
        assert await ask(port, cluster="a") == 200
