"""A control plane's xDS side in this process, a real Envoy beside it, and backends that answer when told to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import config_source_pb2, extension_pb2, health_check_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.http.lua.v3 import lua_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as hcm_pb2

from control_plane.envoy_files import render_bootstrap
from control_plane.resources.resource import Resource, pack
from control_plane.xds.limits import Limits
from control_plane.xds.load_reports import LoadReportServer
from control_plane.xds.server import SERVER_OPTIONS, XdsServer
from control_plane.xds.table import ResourceTable
from tests.support.envoy import Envoy
from tests.support.processes import free_port

Source = config_source_pb2.ConfigSource
ADS = Source(
    ads=config_source_pb2.AggregatedConfigSource(), resource_api_version="V3", initial_fetch_timeout={"seconds": 0}
)

STATIC = 3
"""Clusters that are the bootstrap's own: @xds, @shadow, @compare."""


def separate_source(api_type: str) -> Source:
    """A stream of its own for each subscription: GRPC (state of the world) or DELTA_GRPC."""
    api = config_source_pb2.ApiConfigSource(
        api_type=api_type, transport_api_version="V3", set_node_on_first_message_only=True
    )
    api.grpc_services.add().envoy_grpc.cluster_name = "@xds"
    return Source(api_config_source=api, resource_api_version="V3", initial_fetch_timeout={"seconds": 0})


def eds_cluster(name: str, *, timeout_ms: int = 1000, bad: bool = False, source: Source = ADS) -> Resource:
    message = cluster_pb2.Cluster(name=name, type=cluster_pb2.Cluster.EDS)
    message.connect_timeout.FromMilliseconds(timeout_ms)
    message.eds_cluster_config.eds_config.CopyFrom(source)
    message.common_lb_config.healthy_panic_threshold.value = 0
    if bad:
        # Against the field's own rule, so that Envoy refuses the whole response unread.
        message.circuit_breakers.thresholds.add().retry_budget.budget_percent.value = 500
    return pack(name, message, model=name)


def assignment(name: str, *ports: int, draining: Iterable[int] = ()) -> Resource:
    message = endpoint_pb2.ClusterLoadAssignment(cluster_name=name)
    for port in ports:
        host = message.endpoints.add() if not message.endpoints else message.endpoints[0]
        entry = host.lb_endpoints.add()
        entry.endpoint.address.socket_address.address = "127.0.0.1"
        entry.endpoint.address.socket_address.port_value = port
        if port in draining:
            entry.health_status = health_check_pb2.DRAINING
    return pack(name, message, model=name)


def router(target: str) -> Resource:
    """Requests that name no cluster go to `target`."""
    source = f"""
function envoy_on_request(handle)
  if handle:headers():get("x-cluster") == nil then handle:headers():add("x-cluster", "{target}") end
end"""
    message = extension_pb2.TypedExtensionConfig(name="router")
    lua = lua_pb2.Lua()
    lua.default_source_code.inline_string = source
    message.typed_config.Pack(lua)
    return pack("router", message, requires=frozenset({target}))


def listener(port: int, *, discovered: bool = True, source: Source = ADS) -> Resource:
    """`discovered`: with the router's filter, whose configuration comes by ECDS."""
    manager = hcm_pb2.HttpConnectionManager(stat_prefix="test")
    host = manager.route_config.virtual_hosts.add(name="all", domains=["*"])
    route = host.routes.add()
    route.match.prefix = "/"
    route.route.cluster_header = "x-cluster"
    route.route.timeout.seconds = 0
    route.route.cluster_not_found_response_code = 1
    if discovered:
        found = manager.http_filters.add(name="router").config_discovery
        found.config_source.CopyFrom(source)
        found.type_urls.append("type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua")
    last = manager.http_filters.add(name="envoy.filters.http.router")
    last.typed_config.Pack(router_pb2.Router())
    message = listener_pb2.Listener(name="http", enable_reuse_port={"value": False})
    message.address.socket_address.address = "127.0.0.1"
    message.address.socket_address.port_value = port
    message.filter_chains.add().filters.add(name="hcm").typed_config.Pack(manager)
    return pack("http", message)


class Backend:
    """HTTP/1.1 on a free port: answers 200, requests for /slow when `release` is set."""

    def __init__(self) -> None:
        self.port = 0
        self.served = 0
        self.waiting = 0
        self.release = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Backend]:
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self.release.set()
            server.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.served += 1
                if head.startswith(b"GET /slow"):
                    self.waiting += 1
                    await self.release.wait()
                    self.waiting -= 1
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


class Probe:
    """One keep-alive connection to Envoy's listener."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> Probe:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def get(self, path: str = "/", cluster: str = "") -> int:
        """The status of one request."""
        header = f"x-cluster: {cluster}\r\n" if cluster else ""
        self._writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\n{header}\r\n".encode())
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.split("content-length: ")[1].split("\r\n")[0]) if "content-length: " in head else 0
        await self._reader.readexactly(length)
        return int(head.split(" ")[1])


async def ask(port: int, path: str = "/", cluster: str = "") -> int:
    async with Probe(port) as probe:
        return await probe.get(path, cluster)


@dataclass
class Plane:
    """A table and, while it runs, its xDS and LRS servers on a port that stays the same."""

    table: ResourceTable = field(default_factory=ResourceTable)
    port: int = field(default_factory=free_port)
    revision: int = 0
    events: list[object] = field(default_factory=list)
    settle_seconds: float = 0.0
    options: Mapping[str, int] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    report_seconds: float = 0.02
    elsewhere: Callable[[str], str] = lambda node: ""

    async def start(self) -> None:
        self.server = grpc.aio.server(options=list((dict(SERVER_OPTIONS) | dict(self.options)).items()))
        self.xds = XdsServer(
            self.table, on_event=self.events.append, limits=self.limits, settle_seconds=self.settle_seconds
        )
        self.loads = LoadReportServer(
            nodes=lambda: self.xds.expected_nodes,
            elsewhere=self.elsewhere,
            stray_seconds=0.2,
            drain_interval_seconds=self.report_seconds,
        )
        self.server.add_generic_rpc_handlers((*self.xds.handlers(), *self.loads.handlers()))
        self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self.server.start()
        self.sending_on = asyncio.create_task(self.loads.run())
        if self.table.ready:
            self.change()

    async def stop(self) -> None:
        self.sending_on.cancel()
        await asyncio.wait({self.sending_on})
        await self.xds.close()
        await self.loads.close()
        await self.server.stop(None)

    def change(self, *puts: Resource, removes: Iterable[tuple[str, str]] = ()) -> int:
        """Move the table by one revision, and return it."""
        self.revision += 1
        change = self.table.update(puts, removes, self.revision)
        self.table.mark_ready()
        self.xds.publish(change)
        return self.revision

    def converged(self, revision: int) -> bool:
        return bool(self.xds.nodes) and self.xds.converged_revision() >= revision

    def sent(self) -> int:
        """Resources and removals sent so far by this server."""
        return sum(counters.sent + counters.removed for counters in self.xds.totals().values())


@asynccontextmanager
async def plane_and_envoy(
    folder: Path,
    *resources: Resource,
    workers: int = 2,
    options: Mapping[str, int] | None = None,
    others: Iterable[Plane] = (),
    edit_bootstrap: Callable[[str], str] = str,
    limits: Limits | None = None,
    report_seconds: float = 0.02,
) -> AsyncIterator[tuple[Plane, Envoy]]:
    """A control plane that serves these resources, with these gRPC options changed, and an Envoy that is ready and
    knows of the others too."""
    plane = Plane(options=options or {}, limits=limits or Limits(), report_seconds=report_seconds)
    await plane.start()
    plane.change(*resources)
    admin = free_port()
    bootstrap = render_bootstrap([f"127.0.0.1:{each.port}" for each in (plane, *others)], admin=f"127.0.0.1:{admin}")
    envoy = await asyncio.to_thread(Envoy, folder, edit_bootstrap(bootstrap), admin, workers=workers)
    try:
        deadline = time.monotonic() + 20
        while (await asyncio.to_thread(envoy.admin, "/ready")).strip() != "LIVE":
            assert time.monotonic() < deadline, envoy.child.output[-3000:]
            await asyncio.sleep(0.02)
        yield plane, envoy
    finally:
        await asyncio.to_thread(envoy.close)
        await plane.stop()
