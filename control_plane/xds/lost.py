"""Streams that have ended and whose clients are to be back in a moment. Pure: the present is an argument, seconds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from control_plane.xds.population import StreamKey
from control_plane.xds.view import Client, View


@dataclass(frozen=True, slots=True)
class LostStream:
    """A stream that has ended, of a client without a proxy or of an Envoy that has others on the same connection: the
    client goes on with what it has, and is to be back before `until`. An Envoy that is gone altogether is `away`."""

    until: float
    stream: StreamKey
    view: View
    revision: int
    client: Client


class LostStreams:
    """Iterated: all that `expire` has not forgotten, and that are not back."""

    def __init__(self) -> None:
        self._streams: list[LostStream] = []

    def __iter__(self) -> Iterator[LostStream]:
        return iter(self._streams)

    def add(self, stream: LostStream) -> None:
        """It has ended just now."""
        self._streams.append(stream)

    def back(self, key: StreamKey, view: View) -> None:
        """A client has connected: the one that was lost, if it is. One only, for several Envoys may go by one node id;
        the peer's port is another one now."""
        key = key._replace(peer="")
        found = (lost for lost in self._streams if lost.stream._replace(peer="") == key and lost.view is view)
        if (lost := next(found, None)) is not None:
            self._streams.remove(lost)

    def awaited(self, now: float) -> Iterator[LostStream]:
        """Those whose time is not over."""
        return (lost for lost in self._streams if lost.until > now)

    def expire(self, now: float) -> None:
        """Forget the others."""
        self._streams = list(self.awaited(now))
