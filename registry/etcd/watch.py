"""One watch on one member. Invariant: what it yields is in etcd's order and never splits a revision; when anything is
amiss it raises, and the caller decides from where to watch again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from registry.etcd.connection import Connection, Method, Stream
from registry.etcd.errors import from_cancel_reason
from registry.etcd.model import Event, events, prefix_range
from registry.pb import etcd_pb2 as pb

_WATCH = Method("/etcdserverpb.Watch/Watch", pb.WatchResponse)
# Without it a watch on a member that lost its quorum stays silent for ever (etcd's `WithRequireLeader`).
_REQUIRE_LEADER = (("hasleader", "true"),)


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


class WatchCalls:
    """etcd's Watch service."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @asynccontextmanager
    async def watch(self, prefix: str, start_revision: int) -> AsyncIterator[Watch]:
        """Watch all keys under a prefix from a revision on; entered once etcd has confirmed it. Raises Compacted,
        EtcdError, also from within the body."""
        timeout = self._connection.config.timeout
        key, end = prefix_range(prefix)
        create = pb.WatchCreateRequest(key=key, range_end=end, start_revision=start_revision, progress_notify=True)
        async with self._connection.stream(_WATCH, _REQUIRE_LEADER) as stream:
            response = await stream.ask(pb.WatchRequest(create_request=create), timeout)
            _raise_if_cancelled(response, stream.address)
            yield Watch(stream)


def _raise_if_cancelled(response: pb.WatchResponse, address: str) -> None:
    # etcd sets compact_revision on a cancelled watch only.
    if response.canceled or response.compact_revision:
        raise from_cancel_reason(response.cancel_reason, response.compact_revision, address)
