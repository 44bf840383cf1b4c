"""The Load Reporting Service (LRS): the grpc.aio shell around the ledger.

Invariants: while nothing drains an Envoy reports about all of its clusters every `statistics_seconds`, for the
statistics (load_totals.py), and a gRPC client about nothing. While something drains, each reports every
`drain_interval_seconds` (longer where that would be too much, see `interval`) about the clusters that have a draining
endpoint, an Envoy about those of observed models too, and about no others. What it is asked for changes only after it
has reported so: Envoy begins its interval anew with every answer (load_stats_reporter_impl.cc, startLoadReportPeriod),
so that one drain after another, each sooner than the interval, would keep it from reporting at all. "All clusters" are
those that Envoy has when the interval of a report begins; it need not be asked again for those that come later.

The replica that configures an Envoy is the one that reads its reports: to Envoy these are two streams with a turn each
among the control planes, so what comes to the wrong replica is passed on (load_relay.py). Where that can't be, the
stream is ended (Envoy 1.40 tries the next one after 5 s), or none could say that nothing is in flight.
gRPC clients without a proxy count apart (client_ledger.py): theirs are on one connection.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from envoy.config.core.v3 import base_pb2
from envoy.service.load_stats.v3 import lrs_pb2

from control_plane.drains import Drain, Places
from control_plane.xds.client_ledger import ClientLedger
from control_plane.xds.load_ledger import LoadLedger
from control_plane.xds.load_relay import RELAYED, LoadRelay
from control_plane.xds.load_totals import LoadTotals
from control_plane.xds.view import Client, is_grpc_client

log = logging.getLogger(__name__)

SERVICE = "envoy.service.load_stats.v3.LoadReportingService"

SHORTEST_INTERVAL = 0.01
_LONGEST_INTERVAL = 1.0
_PER_STREAM, _PER_CLUSTER = 0.0005, 0.000025
_PER_ENVOYS_CLUSTER, _PER_READ_CLUSTER = 0.0005, 0.00005
"""Seconds: a hundred times what Envoy's main thread takes for one cluster of a report, idle or not, and fifty times
what this process takes for an idle one (python -m bench.statistics)."""
_OBSERVED_SECONDS = 1.0
"""A canary's gates look as often."""
_IDLE = 60.0
_ALL_CLUSTERS = "envoy.lrs.supports_send_all_clusters"
"""What a client says that can be asked about all clusters without their names (lrs.proto, send_all_clusters)."""
_PATIENCE = 1.0
"""Seconds after which an Envoy is asked anew even though it has not reported."""
_BREATH = 0.02
"""Seconds between two looks at who is configured where, so that a thousand Envoys that come at once are one."""


def interval(streams: int, clusters: int, shortest: float = SHORTEST_INTERVAL) -> float:
    """Seconds between an Envoy's reports. A drain waits for some of them, so they are to be short; but not so that a
    thousand Envoys would take all of this process's time (some 0.1 ms a report), or a thousand clusters all of Envoy's
    main thread (some microseconds for each)."""
    return min(_LONGEST_INTERVAL, max(shortest, _PER_STREAM * streams, _PER_CLUSTER * clusters))


@dataclass(slots=True)
class _Stream:
    """`reported`: since it was last asked for something; `interval`: the seconds that it was asked for then; `before`:
    those that it was asked for before that. `known`: it has said who it is; `takes_all`: it is an Envoy that can be
    asked about all clusters; `all_asked`: it was, with the newest asking. `relayed`: another control plane passes it
    on; `relay`: this one does so; `unreachable`: where that failed. `tasks`: while something may be begun for it."""

    wake: asyncio.Event = field(default_factory=asyncio.Event)
    known: bool = False
    takes_all: bool = False
    all_asked: bool = False
    reported: bool = True
    interval: float = 0.0
    before: float = 0.0
    relayed: bool = False
    node: base_pb2.Node | None = None
    tasks: asyncio.TaskGroup | None = None
    relay: LoadRelay | None = None
    relaying: asyncio.Task[None] | None = None
    unreachable: set[str] = field(default_factory=set)

    def ending(self) -> None:
        """Nothing new is begun for it."""
        self.tasks = None
        if self.relaying is not None:
            self.relaying.cancel()
        self.wake.set()

    def due(self) -> float:
        """The seconds after which the report that comes next is due; it may have been made before it was asked."""
        return self.interval if self.reported else max(self.interval, self.before)


class LoadReportServer:
    """Serves LRS. `on_change` is called when `in_flight` may have changed; it must not block.

    `nodes` gives the node ids of the Envoys that must have reported, one entry for each (`XdsServer.expected_nodes`),
    `clients` the gRPC clients that use some of these clusters (`XdsServer.clients`), `elsewhere` where another control
    plane that configures an Envoy serves it, or nothing (`RollCall.elsewhere`).
    `stray_seconds`: how long an Envoy's two streams may take to both be here. `statistics_seconds`: 0 for none.
    """

    def __init__(
        self,
        *,
        on_change: Callable[[], None] = lambda: None,
        nodes: Callable[[], Collection[str]] = tuple,
        clients: Callable[[Collection[str]], Collection[Client]] = lambda clusters: (),
        elsewhere: Callable[[str], str] = lambda node: "",
        drain_interval_seconds: float = SHORTEST_INTERVAL,
        statistics_seconds: float = 5.0,
        stray_seconds: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_change = on_change
        self._nodes = nodes
        self._clients = clients
        self._elsewhere = elsewhere
        self._clock = clock
        self._drain_interval = drain_interval_seconds
        self._statistics_seconds = statistics_seconds
        self._stray_seconds = stray_seconds
        self._ledger = LoadLedger()
        self._client_ledger = ClientLedger()
        self.totals = LoadTotals()
        self._clusters: frozenset[str] = frozenset()
        self._observed: frozenset[str] = frozenset()
        self._numbers = itertools.count(1)
        self._streams: dict[int, _Stream] = {}
        self._ended: dict[int, str] = {}
        self._closing = False
        self._all_ended = asyncio.Event()
        self._called = asyncio.Event()

    def handlers(self) -> Sequence[grpc.GenericRpcHandler]:
        """What to hand to `grpc.aio.Server.add_generic_rpc_handlers`."""
        method: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(
            self._serve,
            request_deserializer=lrs_pb2.LoadStatsRequest.FromString,
            response_serializer=lrs_pb2.LoadStatsResponse.SerializeToString,
        )
        return (grpc.method_handlers_generic_handler(SERVICE, {"StreamLoadStats": method}),)

    async def run(self) -> None:
        """Pass on what those report who are configured elsewhere, and ask who is silent, until cancelled."""
        before: frozenset[int] = frozenset()
        awaited = False
        while True:
            await self._look_whenever_called(_now() + self._stray_seconds)
            strays = self._pass_strays_on()
            # Seen twice, because a connection that is made anew brings one of the two streams first.
            self._end(strays & before, "another control plane configures this Envoy")
            before = strays
            self._end_overdue()
            if awaited or self._clusters:
                # A client may have been gone for so long that it is no longer waited for; and who keeps a drain waiting
                # is to be said, though nothing happens.
                self._on_change()
            awaited = self._client_ledger.awaits_return(self._clock())

    def roll_called(self) -> None:
        """There may be news of which control plane configures an Envoy that reports here."""
        self._called.set()

    async def _look_whenever_called(self, end: float) -> None:
        while True:
            try:
                async with asyncio.timeout_at(end):
                    await self._called.wait()
            except TimeoutError:
                return
            self._called.clear()
            self._pass_strays_on()
            await asyncio.sleep(_BREATH)

    def _pass_strays_on(self) -> frozenset[int]:
        """Those of whom nobody knows, or can be told, that another control plane configures them are returned."""
        nodes = self._nodes()
        for stream in self._streams.values():
            if stream.relay is not None and stream.relaying is not None and stream.node is not None:
                here = stream.node.id in nodes
                if here or stream.relay.asking.deaf or self._elsewhere(stream.node.id) != stream.relay.address:
                    stream.relaying.cancel()
        left = set()
        for number in self._ledger.strays(nodes):
            stream = self._streams[number]
            assert stream.node is not None
            address = "" if stream.relayed or stream.node.id in nodes else self._elsewhere(stream.node.id)
            if not address or address in stream.unreachable:
                left.add(number)
            elif stream.relaying is None and stream.tasks is not None:
                relay = LoadRelay(stream.node, address, on_asked=stream.wake.set, clock=self._clock)
                stream.relaying = stream.tasks.create_task(self._pass_on(number, relay))
        return frozenset(left)

    async def _pass_on(self, number: int, relay: LoadRelay) -> None:
        stream = self._streams[number]
        assert stream.node is not None
        log.debug("%s reports load here, and is configured by %s", stream.node.id, relay.address)
        # To the other one it counts from here on.
        self._ledger.disconnected(number)
        self.totals.disconnected(number)
        stream.relay = relay
        try:
            await relay.run()
        finally:
            stream.relay = stream.relaying = None
            if relay.asking.wanted is None or relay.asking.deaf:
                stream.unreachable.add(relay.address)
            self._ledger.connected(number, stream.node.id)
            stream.wake.set()
            self._called.set()

    def _end(self, numbers: Iterable[int], reason: str) -> None:
        for number in numbers:
            self._ended[number] = reason
            self._streams[number].wake.set()

    def _end_overdue(self) -> None:
        self._end(self._client_ledger.overdue(self._clock()), "an instance drains: report on a new stream")

    def ask_about(self, clusters: Collection[str]) -> None:
        """The clusters with anything that drains, acknowledged or not."""
        wanted = frozenset(clusters)
        if wanted != self._clusters:
            self._clusters = wanted
            for stream in self._streams.values():
                stream.wake.set()

    def observe(self, clusters: Collection[str]) -> None:
        """The clusters whose statistics are to go on while something drains."""
        wanted = frozenset(clusters)
        if wanted != self._observed:
            self._observed = wanted
            for stream in self._streams.values():
                stream.wake.set()

    def set_draining(self, drains: Places) -> None:
        """Every Envoy has acknowledged these drains, and no others: count what is in flight in their places."""
        changed = self._ledger.drain(drains)
        self._client_ledger.drain(drains, self._clock())
        if changed:
            self._end_overdue()
            self._on_change()

    def in_flight(self, drain: Drain) -> int | None:
        """Requests in flight in a drain's places over all Envoys and gRPC clients of this replica; None while it isn't
        known."""
        by_envoys = self._ledger.in_flight(drain, self._nodes())
        if by_envoys is None:
            return None
        by_clients = self._client_ledger.in_flight(drain, self._clients(self._clusters), self._clock())
        return None if by_clients is None else by_envoys + by_clients

    def silent(self, drain: Drain) -> list[str]:
        """The node ids of the Envoys that have not reported since all of them acknowledged a drain."""
        return self._ledger.silent(drain, self._nodes())

    async def close(self) -> None:
        """End every stream, so that the Envoys go to another replica."""
        self._closing = True
        for stream in self._streams.values():
            stream.wake.set()
        if self._streams:
            await self._all_ended.wait()

    async def _serve(self, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]) -> None:
        number = next(self._numbers)
        stream = self._streams[number] = _Stream()
        stream.relayed = any(key == RELAYED for key, _ in context.invocation_metadata() or ())
        try:
            async with asyncio.TaskGroup() as tasks:
                stream.tasks = tasks
                reader = tasks.create_task(self._read(number, requests, context.peer()))
                reader.add_done_callback(lambda _: stream.ending())
                await self._ask(number, context, reader)
                stream.ending()
                reader.cancel()
            if number in self._ended:
                await context.abort(grpc.StatusCode.UNAVAILABLE, self._ended[number])
        finally:
            del self._streams[number]
            asked = self._ended.pop(number, None) is not None
            self._ledger.disconnected(number)
            self.totals.disconnected(number)
            self._client_ledger.disconnected(number, self._clock(), asked=asked)
            self._on_change()
            if not self._streams:
                self._all_ended.set()
        if self._closing:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "this control plane is shutting down")

    async def _ask(self, number: int, context: grpc.aio.ServicerContext[Any, Any], reader: asyncio.Task[None]) -> None:
        stream = self._streams[number]
        asked: lrs_pb2.LoadStatsResponse | None = None
        asked_at = 0.0
        while not (self._closing or number in self._ended or reader.done()):
            stream.wake.clear()
            if not stream.known or (stream.relay is not None and stream.relay.asking.wanted is None):
                await stream.wake.wait()
                continue
            response = self._wanted(stream)
            timeout = None
            if response != asked:
                # Who has been told to report soon is let do so first.
                at_once = stream.reported or stream.relay is not None
                wait = 0.0 if at_once or not asked or not asked.clusters else asked_at + _PATIENCE - _now()
                if wait <= 0:
                    # lrs.proto: the client reports in the way that the last response asks for, from there on.
                    await context.write(response)
                    asked, asked_at, stream.reported = response, _now(), False
                    stream.before, stream.all_asked = stream.interval, response.send_all_clusters
                    stream.interval = response.load_reporting_interval.ToNanoseconds() / 1e9
                    continue
                timeout = wait
            try:
                async with asyncio.timeout(timeout):
                    await stream.wake.wait()
            except TimeoutError:
                continue

    def _wanted(self, stream: _Stream) -> Any:
        if stream.relay is not None:
            return stream.relay.asking.wanted
        response = lrs_pb2.LoadStatsResponse(report_endpoint_granularity=True)
        if self._clusters:
            wanted = self._clusters | self._observed if stream.takes_all else self._clusters
            response.clusters.extend(sorted(wanted))
            seconds = interval(len(self._streams), len(wanted), self._drain_interval)
        else:
            response.send_all_clusters = stream.takes_all and self._statistics_seconds > 0
            seconds = self.pause if response.send_all_clusters else _IDLE
        response.load_reporting_interval.FromMilliseconds(int(seconds * 1e3))
        return response

    @property
    def pause(self) -> float:
        """Seconds between two reports about everything, fewer while a model is observed; 0: there are none. At most a
        hundredth of each Envoy's time goes into them, and a fiftieth of ours. In powers of two, for each asking begins
        Envoy's interval anew."""
        if not self._statistics_seconds:
            return 0.0
        shortest = min(self._statistics_seconds, _OBSERVED_SECONDS if self._observed else math.inf)
        most, all_of_them = self.totals.clusters
        least = max(_PER_ENVOYS_CLUSTER * most, _PER_READ_CLUSTER * all_of_them)
        return shortest * 2.0 ** math.ceil(math.log2(max(1.0, least / shortest)))

    async def _read(self, number: int, requests: AsyncIterator[Any], peer: str) -> None:
        # The first message tells who it is. An Envoy that has lost its stream puts into it what it has counted since.
        first = await anext(aiter(requests), None)
        if first is None:
            return
        log.debug("%s at %s reports load", first.node.id, peer)
        without_proxy = is_grpc_client(first.node)
        stream = self._streams[number]
        stream.node = first.node
        if without_proxy:
            self._client_ledger.connected(number, peer, self._clock())
        else:
            self._ledger.connected(number, first.node.id)
            await self._count(number, first, everything=False)
        stream.known, stream.takes_all = True, not without_proxy and _ALL_CLUSTERS in first.node.client_features
        stream.wake.set()
        self._called.set()
        async for request in requests:
            if stream.relay is not None:
                if not stream.relay.passed_on(request):
                    await self._count(number, request, everything=False)
                    self.totals.disconnected(number)
                continue
            if without_proxy:
                self._client_ledger.reported(number, request)
            else:
                await self._reported(number, stream, request)
            if not stream.reported or (stream.all_asked and stream.interval != self.pause):
                stream.reported = True
                stream.wake.set()
            if self._clusters:
                self._on_change()

    async def _reported(self, number: int, stream: _Stream, report: Any) -> None:
        # While nothing drains the ledger has no use for what may be ten thousand clusters.
        if self._clusters:
            self._ledger.reported(number, report, stream.due())
        await self._count(number, report, everything=stream.all_asked)

    async def _count(self, number: int, report: Any, *, everything: bool) -> None:
        for _ in self.totals.reported(number, report, everything=everything):
            await asyncio.sleep(0)


def _now() -> float:
    return asyncio.get_running_loop().time()
