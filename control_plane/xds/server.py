"""The grpc.aio shell around the stream machines: aggregated delta discovery.

Invariant: each update of the table reaches every machine synchronously in `publish`, so no machine ever sees the table
ahead of its notice. A stream is one task of gRPC's handler and one that reads; both end before the stream does.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import grpc
from envoy.service.discovery.v3 import discovery_pb2

from control_plane.xds.delta import DeltaStream
from control_plane.xds.events import (
    Connected,
    Disconnected,
    HeldTooLong,
    Refused,
    StreamEvent,
    StreamStatus,
    short_type,
)
from control_plane.xds.limits import Limits
from control_plane.xds.stream import ProtocolError
from control_plane.xds.subscription import Counters
from control_plane.xds.table import ResourceTable, TableChange

log = logging.getLogger(__name__)

AGGREGATED = "envoy.service.discovery.v3.AggregatedDiscoveryService"
SHOWN = 5
"""Names that a log message lists before it says how many more there are."""

REASON = 500
"""Characters of a NACK's message that are logged."""

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


class _Connection:
    """One stream and what wakes its writer."""

    def __init__(self, machine: DeltaStream, peer: str, now: float) -> None:
        self.machine = machine
        self.peer = peer
        self.connected_at = now
        self.wake = asyncio.Event()
        self.closing = False
        self.error: ProtocolError | None = None

    @property
    def node(self) -> str:
        return self.machine.node


class XdsServer:
    """Serves a table. `on_event` is called from the event loop for everything worth counting; it must not block.

    `on_change` is called, without arguments, when `converged_revision` may have changed. `settle_seconds`: how long
    after the first snapshot, and after an Envoy was lost, it is waited for before anything is claimed of convergence.
    """

    def __init__(
        self,
        table: ResourceTable,
        *,
        on_event: Callable[[StreamEvent], None] = lambda event: None,
        on_change: Callable[[], None] = lambda: None,
        limits: Limits | None = None,
        settle_seconds: float = 3.0,
        ready_seconds: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._table = table
        self._on_event = on_event
        self._on_change = on_change
        self._limits = limits or Limits()
        self._settle_seconds = settle_seconds
        self._ready_seconds = ready_seconds
        self._clock = clock
        self._ready = asyncio.Event()
        self._settle_until: float | None = None
        self._connections: dict[int, _Connection] = {}
        self._numbers = itertools.count(1)
        self._lost: list[tuple[float, str, int]] = []
        self._timers: set[asyncio.TimerHandle] = set()
        self._ended_totals: dict[str, Counters] = {}
        self._closing = False
        self._all_ended = asyncio.Event()

    def handlers(self) -> Sequence[grpc.GenericRpcHandler]:
        """What to hand to `grpc.aio.Server.add_generic_rpc_handlers`."""
        delta: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(
            self._serve_delta,
            request_deserializer=discovery_pb2.DeltaDiscoveryRequest.FromString,
            # Responses are serialised already: no response_serializer.
        )
        return (grpc.method_handlers_generic_handler(AGGREGATED, {"DeltaAggregatedResources": delta}),)

    def publish(self, change: TableChange) -> None:
        """Tell every stream of an update of the table. To be called right after it, before anything is awaited."""
        now = self._clock()
        if self._table.ready and self._settle_until is None:
            self._settle_until = now + self._settle_seconds
            self._ready.set()
            self._later(self._settle_seconds)
        for connection in self._connections.values():
            if connection.machine.notice(change, now):
                connection.wake.set()
        self._on_change()

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

    def _status(self, connection: _Connection) -> StreamStatus:
        return StreamStatus(
            node=connection.node,
            cluster=connection.machine.node_cluster,
            peer=connection.peer,
            connected_at=connection.connected_at,
            converged_revision=connection.machine.converged_revision(self._clock()),
            types=connection.machine.status(),
        )

    def now(self) -> float:
        """The present in what `StreamStatus.connected_at` counts."""
        return self._clock()

    @property
    def nodes(self) -> tuple[str, ...]:
        """The node id of each stream; empty for one that has not said it yet."""
        return tuple(connection.node for connection in self._connections.values())

    @property
    def expected_nodes(self) -> tuple[str, ...]:
        """The same, and the Envoys whose stream was lost less than `settle_seconds` ago. They go on with what they
        have, so what they have in flight is not known before they are back."""
        now = self._clock()
        return (*self.nodes, *(node for until, node, _ in self._lost if until > now))

    def totals(self) -> dict[str, Counters]:
        """What was sent and answered so far by type URL, streams that have ended included; only ever grows."""
        totals = {type_url: replace(counters) for type_url, counters in self._ended_totals.items()}
        for connection in self._connections.values():
            _add(totals, connection.machine.counters())
        return totals

    def converged_revision(self) -> int:
        """The newest registry revision whose consequences every Envoy has acknowledged; 0 while that isn't known.

        It isn't for `settle_seconds` after the first snapshot, because the Envoys of a control plane that restarts
        need a moment to come back. An Envoy whose stream was lost holds the figure down for as long, unless it
        comes back. With no Envoy at all it is the table's revision.
        """
        now = self._clock()
        if self._settle_until is None or now < self._settle_until:
            return 0
        self._lost = [lost for lost in self._lost if lost[0] > now]
        return min(
            (
                *(connection.machine.converged_revision(now) for connection in self._connections.values()),
                *(revision for _, _, revision in self._lost),
            ),
            default=self._table.revision,
        )

    async def close(self) -> None:
        """End every stream with UNAVAILABLE, so that the Envoys go to another replica; new ones are refused."""
        self._closing = True
        self._ready.set()
        for connection in self._connections.values():
            connection.closing = True
            connection.wake.set()
        for timer in self._timers:
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

    async def _serve_delta(self, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await self._until_ready(context)
        now = self._clock()
        connection = _Connection(DeltaStream(self._table, now, self._limits), context.peer(), now)
        number = next(self._numbers)
        self._connections[number] = connection
        detail = "the stream ended"
        try:
            async with asyncio.TaskGroup() as tasks:
                reader = tasks.create_task(self._read(connection, requests))
                await self._write(connection, context, reader)
                reader.cancel()
        except asyncio.CancelledError:
            # gRPC cancels the handler when the other end or the connection is gone.
            unanswered = connection.machine.unanswered
            detail = f"it is gone or no longer answers ({unanswered} responses without an answer)"
            raise
        finally:
            del self._connections[number]
            self._ended(connection, "closed by us" if connection.closing else detail)
        if connection.error is not None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(connection.error))
        if connection.closing:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "this control plane is shutting down")

    async def _until_ready(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Hold a stream back for a moment, then refuse it: another replica may have read the registry already."""
        try:
            async with asyncio.timeout(self._ready_seconds):
                await self._ready.wait()
        except TimeoutError:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "this control plane has not read the registry yet")
        if self._closing:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "this control plane is shutting down")

    async def _read(self, connection: _Connection, requests: AsyncIterator[Any]) -> None:
        machine = connection.machine
        first = True
        async for request in requests:
            try:
                machine.receive(request, self._clock())
            except ProtocolError as error:
                log.warning("Envoy %s at %s: %s; its stream is ended", machine.node, connection.peer, error)
                connection.error = error
                break
            if first:
                first = False
                self._connected(connection)
            connection.wake.set()
        connection.wake.set()

    async def _write(
        self,
        connection: _Connection,
        context: grpc.aio.ServicerContext[Any, Any],
        reader: asyncio.Task[None],
    ) -> None:
        machine = connection.machine
        while not (connection.closing or reader.done()):
            connection.wake.clear()
            for response in machine.outgoing(self._clock()):
                # Waits while the Envoy does not read; what comes meanwhile merges in the machine.
                await context.write(response)
            for event in machine.events():
                self._tell(event)
            self._on_change()
            if connection.wake.is_set():
                continue
            deadline = machine.next_deadline()
            try:
                async with asyncio.timeout(None if deadline is None else max(0.0, deadline - self._clock())):
                    await connection.wake.wait()
            except TimeoutError:
                pass

    # What is told

    def _connected(self, connection: _Connection) -> None:
        back = next((lost for lost in self._lost if lost[1] == connection.node), None)
        if back is not None:
            # One only: several Envoys may go by one node id.
            self._lost.remove(back)
        self._tell(Connected(connection.node, connection.peer))

    def _ended(self, connection: _Connection, detail: str) -> None:
        now = self._clock()
        _add(self._ended_totals, connection.machine.counters())
        for event in connection.machine.events():
            self._tell(event)
        if not self._closing and connection.node:
            # It goes on with the configuration that it has, and will be back in a moment, here or elsewhere.
            revision = connection.machine.converged_revision(now)
            self._lost.append((now + self._settle_seconds, connection.node, revision))
            self._later(self._settle_seconds)
        self._tell(Disconnected(connection.node, connection.peer, detail))
        if not self._connections:
            self._all_ended.set()
        self._on_change()

    def _tell(self, event: StreamEvent) -> None:
        match event:
            case Connected():
                log.info("Envoy %s at %s: connected", event.node, event.peer)
            case Disconnected():
                log.info("Envoy %s at %s: disconnected, %s", event.node, event.peer, event.detail)
            case Refused():
                what = "; looking for the one to blame" if event.searching else ""
                log.warning(
                    "Envoy %s refused %s %s%s: %s",
                    event.node,
                    short_type(event.type_url),
                    _listed(event.names),
                    what,
                    # Envoy prints the whole resource first, and the reason last.
                    event.message if len(event.message) <= REASON else "… " + event.message[-REASON:],
                )
            case HeldTooLong():
                log.warning(
                    "Envoy %s is sent %s %s now, which waited too long for %s",
                    event.node,
                    short_type(event.type_url),
                    _listed(event.names),
                    _listed(event.waiting_for) if event.waiting_for else "its answer",
                )
        self._on_event(event)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN]) or "nothing that was sent on this stream"
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown


def _add(totals: dict[str, Counters], more: Mapping[str, Counters]) -> None:
    for type_url, counters in more.items():
        total = totals.setdefault(type_url, Counters())
        total.responses += counters.responses
        total.sent += counters.sent
        total.removed += counters.removed
        total.acked += counters.acked
        total.nacked += counters.nacked
