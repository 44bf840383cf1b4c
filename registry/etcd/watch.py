"""One watch on one member. Invariant: what it yields is in etcd's order and never splits a revision; when anything is
amiss it raises, and the caller decides from where to watch again.

A stream lasts no longer than the member's process. So what is read after a member has answered on a stream, and before
a watch is made on the same stream, comes from the same past as what the watch tells: etcd can't have been wiped or
restored in between.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from registry.etcd.connection import Connection, Method, Stream
from registry.etcd.errors import from_cancel_reason
from registry.etcd.model import Event, events, prefix_range
from registry.pb import etcd_pb2 as pb

_WATCH = Method("/etcdserverpb.Watch/Watch", pb.WatchResponse)
_NEVER = 2**63 - 1
"""A revision that no etcd reaches."""


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """Events in order; without events, a progress notification: nothing up to `revision` is still to come."""

    revision: int
    events: tuple[Event, ...]


class Watch:
    """An established watch: iterate it for batches, for as long as the member answers."""

    def __init__(self, stream: Stream[pb.WatchResponse]) -> None:
        self._stream = stream

    @property
    def address(self) -> str:
        """The member that it runs on."""
        return self._stream.address

    async def next(self) -> WatchBatch:
        """Wait for the next batch. Raises Compacted, EtcdError."""
        response = await self._stream.receive()
        _raise_if_cancelled(response, self.address)
        return WatchBatch(response.header.revision, events(response))


class WatchStream:
    """A stream to one member, on which a watch can be made."""

    def __init__(self, stream: Stream[pb.WatchResponse], prefix: str, timeout: float) -> None:
        self._stream, self._prefix, self._timeout = stream, prefix, timeout

    async def watch(self, start_revision: int) -> Watch:
        """Watch all keys under the prefix from a revision on; returns once etcd has confirmed it. Raises Compacted,
        EtcdError."""
        await self._create(start_revision, progress_notify=True)
        return Watch(self._stream)

    async def prove(self) -> None:
        """Wait for a sign that the member is at the other end. Raises EtcdError."""
        # A watch is the only question that every etcd answers on this stream. This one never has anything to tell.
        await self._create(_NEVER, progress_notify=False)

    async def _create(self, start_revision: int, *, progress_notify: bool) -> None:
        key, end = prefix_range(self._prefix)
        create = pb.WatchCreateRequest(
            key=key, range_end=end, start_revision=start_revision, progress_notify=progress_notify
        )
        response = await self._stream.ask(pb.WatchRequest(create_request=create), self._timeout)
        _raise_if_cancelled(response, self._stream.address)


class WatchCalls:
    """etcd's Watch service."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @asynccontextmanager
    async def watch_stream(self, prefix: str) -> AsyncIterator[WatchStream]:
        """A stream for a watch of all keys under a prefix. Raises EtcdError, also from within the body."""
        async with self._connection.stream(_WATCH) as stream:
            yield WatchStream(stream, prefix, self._connection.config.timeout)

    @asynccontextmanager
    async def watch(self, prefix: str, start_revision: int) -> AsyncIterator[Watch]:
        """Watch all keys under a prefix from a revision on; entered once etcd has confirmed it. Raises Compacted,
        EtcdError, also from within the body."""
        async with self.watch_stream(prefix) as stream:
            yield await stream.watch(start_revision)


def _raise_if_cancelled(response: pb.WatchResponse, address: str) -> None:
    # etcd sets compact_revision on a cancelled watch only.
    if response.canceled or response.compact_revision:
        raise from_cancel_reason(response.cancel_reason, response.compact_revision, address)
