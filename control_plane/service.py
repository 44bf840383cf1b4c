"""A control-plane replica: the asyncio shell around the pipeline, the xDS server and the registry.

Invariants: Envoys are served nothing before the whole registry was read once; when etcd goes away they keep what they
have; every task is owned by `serve` and ends with it.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import grpc

from control_plane.advertise import Advertised
from control_plane.advertise import follow as follow_addresses
from control_plane.catalog import Catalog
from control_plane.comparing.comparer import Comparer
from control_plane.comparing.results import Results
from control_plane.config import ControlPlaneConfig
from control_plane.extent import Convergence, Extent
from control_plane.guard import Guard
from control_plane.http import HttpServer
from control_plane.inspection.csds import ClientStatus
from control_plane.inspection.health import FOR_ENVOYS, FOR_OPERATORS, Health
from control_plane.inspection.inside import Inside
from control_plane.inspection.loop import LoopGate
from control_plane.inspection.pages import Pages
from control_plane.inspection.reflection import enable_reflection
from control_plane.lasting import lasting_objects
from control_plane.leading import Leading
from control_plane.metrics import Metrics
from control_plane.pipeline import Pipeline
from control_plane.proxyless_view import ProxylessView
from control_plane.replica import Drains, pause_after
from control_plane.resources.resource import (
    CLUSTER,
    CLUSTER_LOAD_ASSIGNMENT,
    EXTENSION_CONFIG,
    LISTENER,
    ROUTE_CONFIGURATION,
)
from control_plane.roll_call import RollCall, names
from control_plane.statistics import Statistics
from control_plane.suspects import Verdict
from control_plane.xds.access_log import AccessLogServer
from control_plane.xds.events import short_type
from control_plane.xds.load_reports import LoadReportServer
from control_plane.xds.server import SERVER_OPTIONS, XdsServer
from control_plane.xds.table import ResourceTable, TableChange
from control_plane.xds.view import View
from registry.addresses import split_address
from registry.etcd import EtcdClient
from registry.follow import Changes, Connection, Snapshot, follow
from registry.keys import Keyspace, NodesKey, PlaneKey, PlaneTrafficKey, SuspectsKey
from registry.leased import LeasedKeys
from registry.lost import encode_lost
from registry.records import PlaneRecord, Roll, encode_plane, encode_roll

log = logging.getLogger(__name__)

# Named, because a type of which the last resource went is no longer among the table's: its gauge must go to 0.
_COUNTED = (LISTENER, EXTENSION_CONFIG, CLUSTER, CLUSTER_LOAD_ASSIGNMENT)
_GOODBYE = 2.0
"""Seconds for every stream's end to be written; an Envoy that hangs would take what its keepalive takes."""
_SUSPECTS_PAUSE = 1.0
_LIST_PAUSE = 0.001
"""Seconds per Envoy between two writes of the list of them all: a thousand that arrive must not make a thousand."""


class AddressInUseError(OSError):
    """A port that this replica needs is taken; the message says which and what to do."""


class ControlPlane:
    """One replica. `run` works until cancelled."""

    def __init__(self, config: ControlPlaneConfig) -> None:
        self._config = config
        self._keyspace = Keyspace(config.prefix)
        self._metrics = Metrics(config.metrics_models)
        self._extent, self._convergence = Extent(), Convergence()
        self._table = ResourceTable()
        self._pipeline = Pipeline(
            Catalog(self._keyspace, config.guard),
            self._table,
            config.data_plane,
            empty_grace=config.empty_registry_grace,
        )
        self._proxyless = ProxylessView(self._pipeline.catalog.models, config.data_plane)
        self._grpc_view = View("grpc", self._proxyless.table, self._asked_by_grpc, proxies=False)
        self._roll = RollCall(
            config.lost_envoy_grace,
            # A killed replica is believed in until its lease ends.
            overlap=config.lost_envoy_grace + config.lease_ttl,
            replica=config.replica_name,
            keyspace=self._keyspace,
        )
        self._xds = XdsServer(
            self._table,
            on_change=self._stirred,
            settle_seconds=config.settle_time,
            roll=self._roll,
            grpc_view=self._grpc_view,
        )
        self._guard = Guard(self._pipeline.catalog, config.guard, self._checked, time.monotonic)
        # The version is found out once: it takes a look at the disk.
        self._inside = Inside(config.replica_name, version("modelplane"), self._xds, self._guard_page)
        self._loads = LoadReportServer(
            on_change=self._stirred,
            nodes=lambda: self._xds.expected_nodes,
            clients=self._xds.clients,
            elsewhere=self._roll.elsewhere,
            statistics_seconds=config.statistics_interval,
        )
        self.compared = Results()
        self._comparer = Comparer(
            self._pipeline.catalog, self.compared, lambda outcome: self._metrics.comparisons.labels(outcome).inc()
        )
        self._access_logs = AccessLogServer()
        self._statistics = Statistics(
            self._pipeline.catalog,
            self._loads,
            self.compared,
            self._access_logs.totals,
            look=self._metrics.traffic.look,
        )
        self._health = Health()
        self._drains = Drains(self._pipeline.catalog, self._xds, self._loads)
        self._leading = Leading(
            config.leading,
            self._keyspace,
            config.replica_name,
            config.lease_ttl,
            lambda: self._pipeline.catalog.suspects,
        )
        self._metrics.leading(self._leading.figures)
        etcd = config.etcd.addresses
        self._http = Advertised(config.http_advertise, config.http_listen, etcd)
        self._address = Advertised(config.xds_advertise, config.xds_listen, etcd)
        self._connected = False
        self._trouble = "the registry has not been read yet"
        self._moved = asyncio.Event()
        self._recorded_roll: Roll | None = None
        self._recorded = asyncio.Event()
        self._timers = asyncio.Event()

    def not_ready(self) -> str:
        """Why Envoys can't be served; empty if they can. May be called from any thread."""
        return "" if self._table.ready else self._trouble

    async def run(self) -> None:
        """Listen, follow the registry, serve Envoys. Raises AddressInUseError."""
        async with EtcdClient(self._config.etcd) as client, self._grpc_server():
            pages = Pages(self._inside, LoopGate())
            with _http_server(self._config.http_listen, self._metrics, self.not_ready, pages):
                log.info("replica %s: xDS on %s", self._config.replica_name, self._config.xds_listen)
                keys = LeasedKeys(client, self._config.lease_ttl)
                # It outlives the record, and is left behind at the end: whoever comes next is to know whom to wait for.
                nodes = LeasedKeys(client, max(self._config.lease_ttl, self._config.lost_envoy_grace))
                try:
                    async with asyncio.TaskGroup() as tasks:
                        tasks.create_task(self._follow(client, keys, nodes), name="follow")
                        tasks.create_task(self._expire(), name="expire")
                        tasks.create_task(keys.run(), name="lease")
                        tasks.create_task(self._publish_record(keys), name="record")
                        addresses = (self._http, self._address)
                        tasks.create_task(follow_addresses(addresses, self._stirred), name="addresses")
                        tasks.create_task(nodes.run(), name="nodes-lease")
                        tasks.create_task(self._publish_nodes(keys, nodes), name="nodes")
                        tasks.create_task(self._loads.run(), name="load-reports")
                        tasks.create_task(self._guard.run(), name="guard")
                        tasks.create_task(self._comparer.run(), name="comparer")
                        tasks.create_task(self._publish_suspects(nodes), name="suspects")
                        traffic = self._keyspace.make(PlaneTrafficKey(self._config.replica_name))
                        publish = self._statistics.publish(keys, traffic, lambda: self._table.ready)
                        tasks.create_task(publish, name="statistics")
                        tasks.create_task(self._leading.run(client), name="leading")
                finally:
                    await self._leading.close()
                    await keys.close()

    async def _follow(self, client: EtcdClient, keys: LeasedKeys, nodes: LeasedKeys) -> None:
        replica = self._config.replica_name
        own = {self._keyspace.make(PlaneKey(replica)): keys, self._keyspace.make(NodesKey(replica)): nodes}
        async for update in follow(client, self._keyspace.prefix):
            now = asyncio.get_running_loop().time()
            if isinstance(update, Changes):
                # Nobody deletes these but an operator or an outage. A drain that begins before they are back would
                # find no control plane to wait for.
                for key in own.keys() & update.deletes:
                    own[key].doubt()
            self._leading.heard(update)
            if isinstance(update, Connection):
                self._connection_changed(update)
            if self._roll.apply(update, now):
                # Before anything is claimed of this revision.
                self._log_away()
                self._xds.roll_called()
            self._loads.roll_called()
            with lasting_objects() if isinstance(update, Snapshot) else nullcontext():
                self._publish(self._pipeline.apply(update, now))
            if isinstance(update, Snapshot):
                self._connected = True
                await self._say_ready()
                catalog = self._pipeline.catalog
                log.info(
                    "registry read at revision %d: %d models on %d instances",
                    update.revision, len(catalog.models), len(catalog.instances),
                )  # fmt: skip
                if doubt := self._pipeline.implausible:
                    grace = self._config.empty_registry_grace
                    self._trouble = f"{doubt}; monitors have {grace:g} s to register"
                    log.warning("%s before Envoys are told so", self._trouble)
            self._timers.set()

    def _checked(self, verdicts: Mapping[str, tuple[Verdict, str]]) -> None:
        self._publish(self._pipeline.checked(verdicts))
        self._timers.set()

    def _guard_page(self) -> Mapping[str, Any]:
        return {"waiting": self._trouble if self._pipeline.implausible else "", **self._guard.page()}

    def _log_away(self) -> None:
        if away := self._xds.away:
            log.info("%d Envoys that drains wait for are with no control plane: %s", len(away), names(away))

    async def _say_ready(self) -> None:
        if self._table.ready:
            self._leading.may_stand()
            await self._health.ready()

    def _connection_changed(self, update: Connection) -> None:
        self._connected = update.connected
        if update.connected:
            log.info("registry is back: %s", update.detail)
        else:
            self._trouble = f"the registry does not answer: {update.detail}"
            log.warning("registry lost, Envoys keep what they have: %s", update.detail)

    async def _expire(self) -> None:
        loop = asyncio.get_running_loop()
        pending: float | None = None
        while True:
            deadline = self._pipeline.next_deadline(loop.time())
            if deadline is not None and pending is not None:
                # What is to be looked at again in a second must not be put off by whatever happens within it.
                deadline = min(deadline, pending)
            pending = deadline
            self._timers.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._timers.wait()
            except TimeoutError:
                pending = None
                self._publish(self._pipeline.expire(loop.time()))
                await self._say_ready()

    def _publish(self, change: TableChange) -> None:
        self._drains.catalog_changed()
        self._xds.publish(change)
        if self._table.ready:
            self._proxyless.table.mark_ready()
        revision = self._pipeline.catalog.revision
        self._extent.update(self._pipeline.changed, self._pipeline.catalog.models)
        self._convergence.received(revision, time.monotonic(), bool(self._xds.nodes))
        self._xds.publish(self._proxyless.update(self._pipeline.changed, revision), self._grpc_view)
        if self._drains.going_on:
            # At once: an instance of which more drains than before is looked at anew, however soon all acknowledge.
            self._drains.look(self._xds.converged_revision())
        self._stirred()

    def _asked_by_grpc(self, type_url: str, names: Sequence[str]) -> None:
        change = self._proxyless.ask(type_url, names, self._pipeline.catalog.revision)
        if change is not None:
            self._xds.publish(change, self._grpc_view)

    def _stirred(self) -> None:
        self._moved.set()

    async def _publish_record(self, keys: LeasedKeys) -> None:
        key = self._keyspace.make(PlaneKey(self._config.replica_name))
        published: PlaneRecord | None = None
        loop = asyncio.get_running_loop()
        while True:
            await self._moved.wait()
            self._moved.clear()
            began = loop.time()
            roll, record = self._roll.roll(), self._record()
            self._count(record)
            spent = loop.time() - began
            if record != published and self._table.ready:
                if not self._http.address:
                    # Only now: etcd, towards which this host's own address is looked for, has answered.
                    await self._http.look()
                    await self._address.look()
                    record = replace(record, http=self._http.address, xds=self._address.address)
                keys.set({key: encode_plane(record)})
                published = record
            if published is not None and roll != self._recorded_roll:
                self._recorded_roll = roll
                self._recorded.set()
            await asyncio.sleep(pause_after(spent, draining=self._drains.going_on))

    async def _publish_nodes(self, keys: LeasedKeys, nodes: LeasedKeys) -> None:
        key = self._keyspace.make(NodesKey(self._config.replica_name))
        published: Roll | None = None
        while True:
            await self._recorded.wait()
            self._recorded.clear()
            roll = self._recorded_roll
            if roll is not None and roll != published:
                # The record holds for these before any other replica sees the list and stops waiting for them.
                await keys.flush()
                nodes.set({key: encode_roll(roll)})
                published = roll
                await asyncio.sleep(len(roll.connected) * _LIST_PAUSE)

    async def _publish_suspects(self, nodes: LeasedKeys) -> None:
        key, published = self._keyspace.make(SuspectsKey(self._config.replica_name)), b""
        while True:
            # Often enough for a replica that starts; a wiped etcd gets its keys back sooner, and needs no list.
            await asyncio.sleep(_SUSPECTS_PAUSE)
            entries = self._pipeline.catalog.suspect_entries
            value = encode_lost(entries) if entries and self._connected and self._table.ready else b""
            if value != published:
                nodes.set({key: value or None})
                published = value

    def _record(self) -> PlaneRecord:
        converged = self._xds.converged_revision()
        drains = self._drains.report(converged, asyncio.get_running_loop().time())
        return PlaneRecord(
            converged,
            self._xds.expected_clients,
            self._inside.version,
            drains.draining,
            self._http.address,
            len(self._xds.away),
            drains.servables,
            drains.behind,
            len(self._pipeline.catalog.suspects),
            self._pipeline.catalog.evidence_asked,
            self._address.address,
        )

    def _count(self, record: PlaneRecord) -> None:
        metrics, catalog = self._metrics, self._pipeline.catalog
        metrics.registry_connected.set(self._connected)
        metrics.registry_revision.set(catalog.revision)
        metrics.converged_revision.set(record.converged_revision)
        metrics.models.set(len(catalog.models))
        metrics.extent(self._extent)
        for seconds in self._convergence.converged(record.converged_revision, time.monotonic()):
            if self._xds.nodes:
                metrics.convergence.observe(seconds)
        metrics.instances.set(len(catalog.instances))
        self._guard.look(metrics)
        metrics.draining.set(len(catalog.draining))
        metrics.envoys.set(len(self._xds.nodes))
        metrics.away.set(record.away)
        for type_url in _COUNTED:
            metrics.resources.labels(short_type(type_url)).set(len(self._table.entries(type_url)))
        quarantined = Counter(type_url for view in self._xds.views for type_url, _ in view.table.quarantined)
        for type_url in (*_COUNTED, ROUTE_CONFIGURATION):
            metrics.quarantined.labels(short_type(type_url)).set(quarantined[type_url])
        metrics.streams(self._xds.totals())

    @asynccontextmanager
    async def _grpc_server(self) -> AsyncIterator[None]:
        server = grpc.aio.server(options=SERVER_OPTIONS)
        self._health.add_to(server)
        client_status = ClientStatus(self._inside)
        own = (*self._xds.handlers(), *self._loads.handlers(), *client_status.handlers())
        told = (*self._access_logs.handlers(), *self._comparer.handlers())
        server.add_generic_rpc_handlers((*own, *told))
        enable_reflection(server, FOR_ENVOYS | FOR_OPERATORS)
        try:
            server.add_insecure_port(self._config.xds_listen)
        except RuntimeError as error:
            raise _taken(self._config.xds_listen, "--xds-listen") from error
        await self._health.begin()
        await server.start()
        try:
            yield
        finally:
            await self._health.end()
            try:
                async with asyncio.timeout(_GOODBYE):
                    await self._xds.close()
                    await self._loads.close()
            except TimeoutError:
                log.warning("some Envoys do not read what they are sent; their streams are cut")
            await server.stop(grace=0.5)


@asynccontextmanager
async def _stop_on_signals() -> AsyncIterator[asyncio.Event]:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _taken(address: str, flag: str) -> AddressInUseError:
    return AddressInUseError(f"{address} can't be listened on: is something else there? Choose another with {flag}")


def _http_server(address: str, metrics: Metrics, not_ready: Callable[[], str], pages: Pages) -> HttpServer:
    try:
        return HttpServer(*split_address(address), metrics.registry, not_ready, pages)
    except OSError as error:
        raise _taken(address, "--http-listen") from error


async def serve(config: ControlPlaneConfig) -> None:
    """Run a replica until SIGTERM or SIGINT. Raises AddressInUseError."""
    async with _stop_on_signals() as stop:
        running = asyncio.create_task(ControlPlane(config).run(), name="control-plane")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            log.info("stopping")
            running.cancel()
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)
        try:
            await running
        except asyncio.CancelledError:
            log.info("stopped")
