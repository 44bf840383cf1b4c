"""The grpc.aio shell around the stream machines: who is connected, and what all of them together have acknowledged.

Invariant: each update of a table reaches every machine of its view synchronously in `publish`, so no machine ever sees
its table ahead of its notice. A stream is one task of gRPC's handler and one that reads; both end before it does.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import grpc

from control_plane.resources.resource import CLUSTER_LOAD_ASSIGNMENT
from control_plane.roll_call import RollCall, names
from control_plane.xds.client import kept, user_agent
from control_plane.xds.connection import Connection
from control_plane.xds.events import Connected, Disconnected, StreamEvent, StreamStatus
from control_plane.xds.limits import Limits
from control_plane.xds.lost import LostStream, LostStreams
from control_plane.xds.population import StreamKey, population
from control_plane.xds.services import Method, handlers
from control_plane.xds.subscription import Counters
from control_plane.xds.table import ResourceTable, TableChange
from control_plane.xds.telling import tell
from control_plane.xds.view import Client, View, is_grpc_client
from control_plane.xds.warden import RETRY_SECONDS, judge, tell_trials

log = logging.getLogger(__name__)

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    # An Envoy that hangs or whose machine is gone closes nothing: it is declared dead after 10 s + 3 s. The timeout has
    # two names, and without the second one it was 60 s (grpcio 1.85, an Envoy stopped by SIGSTOP).
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # Envoy pings every two seconds (envoy/bootstrap.yaml), which gRPC takes for abuse unless told otherwise.
    ("grpc.http2.min_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
    # The first request after a reconnect names every resource that the Envoy holds.
    ("grpc.max_receive_message_length", 64 << 20),
    # Two replicas on one port would share it silently.
    ("grpc.so_reuseport", 0),
)
"""What a grpc.aio.server that carries these handlers is to be made with."""


class XdsServer:
    """Serves a table, and gRPC clients without a proxy from the table of `grpc_view`, if there is one.

    `on_event` is called from the event loop for everything worth counting; it must not block.

    `on_change` is called, without arguments, when `converged_revision` may have changed. `settle_seconds`: how long
    after the first snapshot, and after a stream was lost, is waited before anything is claimed of convergence. `roll`
    knows which Envoys are away, and for how long these are waited for; without one it is `settle_seconds` for those
    that were lost here.
    """

    def __init__(
        self,
        table: ResourceTable,
        *,
        on_event: Callable[[StreamEvent], None] = lambda event: None,
        on_change: Callable[[], None] = lambda: None,
        limits: Limits | None = None,
        settle_seconds: float = 3.0,
        roll: RollCall | None = None,
        ready_seconds: float = 2.0,
        grpc_view: View | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.envoy_view = View("envoy", table)
        self._grpc_view = grpc_view
        self._on_event = on_event
        self._on_change = on_change
        self._limits = limits or Limits()
        self._settle_seconds = settle_seconds
        self._roll = RollCall(settle_seconds) if roll is None else roll
        self._ready_seconds = ready_seconds
        self._clock = clock
        self._ready = {view: asyncio.Event() for view in (self.envoy_view, grpc_view) if view is not None}
        self._settle_until: float | None = None
        self._connections: dict[int, Connection] = {}
        self._numbers = itertools.count(1)
        self._lost = LostStreams()
        self._timers: set[asyncio.TimerHandle] = set()
        self._retries: dict[View, asyncio.TimerHandle] = {}
        self._ended_totals: dict[str, Counters] = {}
        self._closing = False
        self._all_ended = asyncio.Event()

    def handlers(self) -> Sequence[grpc.GenericRpcHandler]:
        """What to hand to `grpc.aio.Server.add_generic_rpc_handlers`."""
        return handlers(self._serve)

    def publish(self, change: TableChange, view: View | None = None) -> None:
        """Tell every stream of a view (None: Envoys') of an update of its table. To be called right after it, before
        anything is awaited."""
        now = self._clock()
        view = view or self.envoy_view
        tell_trials(change)
        if view.table.ready:
            self._ready[view].set()
        if self.envoy_view.table.ready and self._settle_until is None:
            self._settle_until = now + self._settle_seconds
            self._later(self._settle_seconds)
        for connection in self._connections.values():
            if connection.view is view and connection.machine.notice(change, now):
                connection.wake()
        self._on_change()

    @property
    def views(self) -> tuple[View, ...]:
        """What clients are served from; Envoys' comes first."""
        return tuple(self._ready)

    @property
    def streams(self) -> tuple[StreamStatus, ...]:
        """How every stream stands, oldest first. Takes some 50 µs for each: ask one by one where there may be many."""
        return tuple(self._status(connection) for connection in self._connections.values())

    @property
    def stream_numbers(self) -> tuple[int, ...]:
        """The open streams, oldest first, for `stream`."""
        return tuple(self._connections)

    def stream(self, number: int) -> StreamStatus | None:
        """How one stream stands; None if it has ended."""
        connection = self._connections.get(number)
        return None if connection is None else self._status(connection)

    def client(self, number: int) -> Connection | None:
        """One stream itself, to be looked at before anything is awaited; None if it has ended."""
        return self._connections.get(number)

    def _status(self, connection: Connection) -> StreamStatus:
        return StreamStatus(
            node=connection.node,
            cluster=connection.machine.node_cluster,
            peer=connection.peer,
            connected_at=connection.connected_at,
            converged_revision=connection.machine.converged_revision(self._clock()),
            types=connection.machine.status(),
            view=connection.view.name,
            variant=connection.method.variant.name,
            only_type=connection.method.only_type or "",
            client=user_agent(connection.client),
        )

    def now(self) -> float:
        """The present in what `StreamStatus.connected_at` counts."""
        return self._clock()

    @property
    def nodes(self) -> tuple[str, ...]:
        """The node id of each proxy that is connected, by however many streams; empty for one without a node id."""
        return population(self._proxies())

    @property
    def expected_nodes(self) -> tuple[str, ...]:
        """The same, and those that are away. They go on with what they have, so what they have in flight is not known
        before they are back."""
        return (*self.nodes, *self.away)

    @property
    def away(self) -> tuple[str, ...]:
        """The node id of each proxy that no control plane has and that is waited for."""
        self._give_up()
        return tuple(one.node for one in self._roll.away)

    def _give_up(self) -> None:
        if nodes := self._roll.expire(self._clock()):
            log.warning("drains no longer wait for %s: no control plane has it any more", names(nodes))

    def roll_called(self) -> None:
        """The roll has news from elsewhere of who is away."""
        deadline = self._roll.next_deadline()
        if deadline is not None:
            self._later(deadline - self._clock())
        self._on_change()

    def _proxies(self) -> Iterator[StreamKey]:
        return (connection.key for connection in self._connections.values() if connection.view.proxies)

    def clients(self, clusters: Collection[str]) -> tuple[Client, ...]:
        """The clients without a proxy that use some of these clusters, and those of which a stream was lost less than
        `settle_seconds` ago, whatever they use."""
        now = self._clock()
        return tuple(
            Client(connection.peer, connection.connected_at)
            for connection in self._connections.values()
            if not connection.view.proxies and connection.machine.subscribes(CLUSTER_LOAD_ASSIGNMENT, clusters)
        ) + tuple(lost.client for lost in self._lost.awaited(now) if not lost.view.proxies)

    @property
    def expected_clients(self) -> int:
        """How many Envoys and clients without a proxy are connected, counting those of the latter that were lost less
        than `settle_seconds` ago."""
        now = self._clock()
        without_proxy = sum(not connection.view.proxies for connection in self._connections.values())
        lost = sum(not lost.view.proxies for lost in self._lost.awaited(now))
        return len(self.nodes) + without_proxy + lost

    def totals(self) -> dict[str, Counters]:
        """What was sent and answered so far by type URL, streams that have ended included; only ever grows."""
        totals = {type_url: replace(counters) for type_url, counters in self._ended_totals.items()}
        for connection in self._connections.values():
            _add(totals, connection.machine.counters())
        return totals

    def converged_revision(self) -> int:
        """The newest registry revision whose consequences every client has acknowledged; 0 while that isn't known.
        Each stream is held against its own view's table.

        It isn't for `settle_seconds` after the first snapshot, because the Envoys of a control plane that restarts
        need a moment to come back. A client whose stream was lost holds the figure down for as long, and an Envoy that
        is away until some replica has it or its grace is over. With no Envoy at all it is the table's revision.
        """
        self._give_up()
        now = self._clock()
        if self._settle_until is None or now < self._settle_until:
            return 0
        self._lost.expire(now)
        return min(
            (
                *(connection.machine.converged_revision(now) for connection in self._connections.values()),
                *(lost.revision for lost in self._lost),
                *(one.revision for one in self._roll.away),
            ),
            default=self.envoy_view.table.revision,
        )

    def behind(self, revision: int) -> frozenset[str]:
        """The node ids of the clients that have not acknowledged all consequences of a registry revision."""
        now = self._clock()
        connected = self._connections.values()
        return frozenset(
            (
                *(one.node for one in connected if one.machine.converged_revision(now) < revision),
                *(lost.stream.node for lost in self._lost if lost.revision < revision),
                *(one.node for one in self._roll.away if one.revision < revision),
            )
        )

    async def close(self) -> None:
        """End every stream with UNAVAILABLE, so that the Envoys go to another replica; new ones are refused."""
        self._closing = True
        for ready in self._ready.values():
            ready.set()
        for connection in self._connections.values():
            connection.close()
        for timer in (*self._timers, *self._retries.values()):
            timer.cancel()
        if self._connections:
            await self._all_ended.wait()

    def _later(self, seconds: float) -> None:
        """Say that `converged_revision` may have changed when a time is over that it was held down for."""

        def over() -> None:
            self._timers.discard(timer)
            self._on_change()

        # A little later than the time itself: the clocks need not agree to the microsecond.
        timer = asyncio.get_running_loop().call_later(seconds + 0.01, over)
        self._timers.add(timer)

    # One stream

    async def _serve(
        self, method: Method, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        # A client that says nothing is owed nothing; closing the gRPC server ends it.
        rest = aiter(requests)
        first = await anext(rest, None)
        if first is None:
            return
        # "Basic Protocol Overview": only the first request is sure to carry the node.
        view = self._grpc_view if self._grpc_view is not None and is_grpc_client(first.node) else self.envoy_view
        await self._until_ready(view, context)
        machine = method.variant.machine(view.table, self._clock(), self._limits, method.only_type)
        connection = Connection(machine, method, view, context.peer(), kept(first.node), self._clock, self._moved)
        number = next(self._numbers)
        self._connections[number] = connection
        try:
            fine = connection.take(first)
            del first  # some 50 KB of an Envoy, for as long as the stream lasts
            if fine:
                self._connected(connection)
                await connection.run(rest, context)
        finally:
            # When the other end or the connection is gone, gRPC cancels the handler or ends its requests, whichever
            # comes first: how it ended can't be told from here.
            detail = f"it is gone or no longer answers ({machine.unanswered} responses without an answer)"
            if connection.closing or connection.error is not None:
                detail = "closed by us"
            del self._connections[number]
            self._ended(connection, detail)
        if connection.error is not None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(connection.error))
        if connection.closing:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "this control plane is shutting down")

    async def _until_ready(self, view: View, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Hold a stream back for a moment, then refuse it: another replica may have read the registry already."""
        try:
            async with asyncio.timeout(self._ready_seconds):
                await self._ready[view].wait()
        except TimeoutError:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "this control plane has not read the registry yet")
        if self._closing:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "this control plane is shutting down")

    # What is told

    def _moved(self, connection: Connection) -> None:
        for event in connection.machine.events():
            self._tell(event, connection)
            change = judge(connection.view.table, event, connection.peer, time.time())
            if change is not None:
                self.publish(change, connection.view)
        self._on_change()

    def _connected(self, connection: Connection) -> None:
        view = connection.view
        self._lost.back(connection.key, view)
        if view.proxies and connection.node:
            self._roll.arrived(connection.node, connection.peer, self._clock())
        self._tell(Connected(connection.node, connection.peer), connection)
        self._retry_withheld(connection.view)

    def _retry_withheld(self, view: View) -> None:
        """Try what is withheld with a client that has connected, and those that do in the next seconds together."""
        if not view.table.quarantined or view in self._retries:
            return
        self.publish(view.table.retry_withheld(), view)
        loop = asyncio.get_running_loop()
        self._retries[view] = loop.call_later(RETRY_SECONDS, self._retried, view, next(self._numbers))

    def _retried(self, view: View, number: int) -> None:
        del self._retries[view]
        if any(connected > number for connected in self._connections):
            self._retry_withheld(view)

    def _ended(self, connection: Connection, detail: str) -> None:
        now = self._clock()
        _add(self._ended_totals, connection.machine.counters())
        for event in connection.machine.events():
            self._tell(event, connection)
        if not self._closing and connection.node:
            # It goes on with the configuration that it has, and will be back in a moment, here or elsewhere.
            self._was_lost(connection, now)
        self._tell(Disconnected(connection.node, connection.peer, detail), connection)
        if not self._connections:
            self._all_ended.set()
        self._on_change()

    def _was_lost(self, connection: Connection, now: float) -> None:
        key, revision = connection.key, connection.machine.converged_revision(now)
        whole = (key.node, key.peer)
        rest = (one.key for one in self._connections.values() if one.view.proxies)
        if connection.view.proxies and all((other.node, other.peer) != whole for other in rest):
            before = (lost.revision for lost in self._lost if (lost.stream.node, lost.stream.peer) == whole)
            self._roll.lost(*whole, min((revision, *before)), now)
            self.roll_called()
        else:
            client = Client(connection.peer, connection.connected_at)
            until = now + self._settle_seconds
            self._lost.add(LostStream(until, key, connection.view, revision, client))
            self._later(self._settle_seconds)

    def _tell(self, event: StreamEvent, connection: Connection) -> None:
        tell(event, "Envoy" if connection.view.proxies else "gRPC client")
        self._on_event(event)


def _add(totals: dict[str, Counters], more: Mapping[str, Counters]) -> None:
    for type_url, counters in more.items():
        total = totals.setdefault(type_url, Counters())
        total.responses += counters.responses
        total.sent += counters.sent
        total.removed += counters.removed
        total.acked += counters.acked
        total.nacked += counters.nacked
