"""One stream of the xDS server: what reads it, what wakes its writer, and how it ends.

Invariant: the reader's task ends before the stream does; nothing is written but what the machine says.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from envoy.config.core.v3 import base_pb2

from control_plane.xds.population import StreamKey
from control_plane.xds.services import Method
from control_plane.xds.stream import ProtocolError, Stream
from control_plane.xds.view import View

log = logging.getLogger(__name__)


class Connection:
    """A stream whose client is known. `on_moved` is called after each request, and after everything that was to be
    written is: the machine may have something to tell."""

    def __init__(
        self,
        machine: Stream,
        method: Method,
        view: View,
        peer: str,
        client: base_pb2.Node,
        clock: Callable[[], float],
        on_moved: Callable[[Connection], None],
    ) -> None:
        self.machine = machine
        self.method = method
        self.view = view
        self.peer = peer
        self.client = client
        self.connected_at = clock()
        self.closing = False
        self.error: ProtocolError | None = None
        self._clock = clock
        self._on_moved = on_moved
        self._wake = asyncio.Event()

    @property
    def node(self) -> str:
        """The node id; empty if the client gave none."""
        return self.machine.node

    @property
    def key(self) -> StreamKey:
        """Whose stream it is, and of what."""
        return StreamKey(self.node, self.peer, self.method.only_type)

    def wake(self) -> None:
        """There may be something to write."""
        self._wake.set()

    def close(self) -> None:
        """Let the stream end."""
        self.closing = True
        self._wake.set()

    def take(self, request: Any) -> bool:
        """Take a request; False if it ends the stream."""
        machine = self.machine
        try:
            type_url, names = machine.asks_for(request)
            if names:
                self.view.wanted(type_url, names)
            machine.receive(request, self._clock())
        except ProtocolError as error:
            log.warning("%s at %s: %s; its stream is ended", machine.node or "a client", self.peer, error)
            self.error = error
        self._wake.set()
        return self.error is None

    async def run(self, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Serve it until either side ends it."""
        async with asyncio.TaskGroup() as tasks:
            reader = tasks.create_task(self._read(requests))
            await self._write(context, reader)
            reader.cancel()

    async def _read(self, requests: AsyncIterator[Any]) -> None:
        async for request in requests:
            if not self.take(request):
                break
            # Not only by the writer: an Envoy that is slow to read can name a bad resource all the same.
            self._on_moved(self)
        self._wake.set()

    async def _write(self, context: grpc.aio.ServicerContext[Any, Any], reader: asyncio.Task[None]) -> None:
        machine = self.machine
        while not (self.closing or self.error or reader.done()):
            self._wake.clear()
            for response in machine.outgoing(self._clock()):
                # Waits while the client does not read; what comes meanwhile merges in the machine.
                await context.write(response)
            self._on_moved(self)
            if self._wake.is_set():
                continue
            deadline = machine.next_deadline()
            try:
                async with asyncio.timeout(None if deadline is None else max(0.0, deadline - self._clock())):
                    await self._wake.wait()
            except TimeoutError:
                pass
