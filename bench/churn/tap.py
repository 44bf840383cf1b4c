"""What a control plane and an Envoy really say to each other: a relay between them that keeps every byte.

The relay passes bytes on and nothing else, so that pings, flow control and a killed peer's reset stay what they were.
What was said is read out of its copy afterwards, as far as it takes to find gRPC messages in HTTP/2 (RFC 9113).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import merge
from typing import Any

from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.message import DecodeError

_PREFACE = 24
_FRAME_HEAD = 9
_MESSAGE_HEAD = 5
_DATA, _PADDED = 0, 0x8

Chunk = tuple[float, bytes]


@dataclass(frozen=True)
class Said:
    """One gRPC message: when it was complete, on which HTTP/2 stream, and by whom."""

    at: float
    stream: int
    by_envoy: bool
    body: bytes


@dataclass
class Conversation:
    """One connection."""

    up: list[Chunk] = field(default_factory=list)
    down: list[Chunk] = field(default_factory=list)

    def messages(self) -> Iterator[Said]:
        """All gRPC messages of both sides, in the order of time."""
        envoy = _messages(self.up, _PREFACE, by_envoy=True)
        return merge(envoy, _messages(self.down, 0, by_envoy=False), key=lambda said: said.at)


def _frames(chunks: list[Chunk], skip: int) -> Iterator[tuple[float, int, int, int, bytes]]:
    """(time, type, flags, stream, payload) of every whole frame."""
    buffer = bytearray()
    for at, data in chunks:
        buffer += data
        if skip:
            cut = min(skip, len(buffer))
            del buffer[:cut]
            skip -= cut
        start = 0
        while len(buffer) - start >= _FRAME_HEAD:
            end = start + _FRAME_HEAD + int.from_bytes(buffer[start : start + 3], "big")
            if len(buffer) < end:
                break
            stream = int.from_bytes(buffer[start + 5 : start + 9], "big") & 0x7FFFFFFF
            yield at, buffer[start + 3], buffer[start + 4], stream, bytes(buffer[start + _FRAME_HEAD : end])
            start = end
        del buffer[:start]


def _messages(chunks: list[Chunk], skip: int, *, by_envoy: bool) -> Iterator[Said]:
    bodies: dict[int, bytearray] = {}
    for at, kind, flags, stream, frame in _frames(chunks, skip):
        if kind != _DATA:
            continue
        payload = frame[1 : len(frame) - frame[0]] if flags & _PADDED else frame
        body = bodies.setdefault(stream, bytearray())
        body += payload
        while len(body) >= _MESSAGE_HEAD:
            end = _MESSAGE_HEAD + int.from_bytes(body[1:_MESSAGE_HEAD], "big")
            if len(body) < end:
                break
            yield Said(at, stream, by_envoy, bytes(body[_MESSAGE_HEAD:end]))
            del body[:end]


class Tap:
    """Relays from `port` to 127.0.0.1:`target`, whether or not something listens there at the moment."""

    def __init__(self, port: int, target: int) -> None:
        self.port, self.target = port, target
        self.conversations: list[Conversation] = []
        self._pumps: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._closed = False

    def cut(self) -> None:
        """End all connections, and every new one, until `mend`."""
        self._closed = True
        for writer in self._writers:
            writer.transport.abort()

    def mend(self) -> None:
        """Relay again."""
        self._closed = False

    async def __aenter__(self) -> Tap:
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pumps.add(task)
        self._writers.add(writer)
        try:
            if not self._closed:
                await self._relay(reader, writer)
        finally:
            self._pumps.discard(task)
            self._writers.discard(writer)
            writer.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            return
        conversation = Conversation()
        self.conversations.append(conversation)
        pumps = [
            asyncio.create_task(_pump(reader, far_writer, conversation.up)),
            asyncio.create_task(_pump(far_reader, writer, conversation.down)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            far_writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: list[Chunk]) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            kept.append((time.monotonic(), data))
            writer.write(data)
            await writer.drain()


def discovery_streams(conversation: Conversation) -> Iterator[list[tuple[float, Any]]]:
    """The delta ADS streams of a connection: each the (time, DeltaDiscoveryRequest or DeltaDiscoveryResponse) of its
    life, in order. Load reports, which share the connection, are left out."""
    streams: dict[int, list[tuple[float, Any]]] = {}
    others: set[int] = set()
    for said in conversation.messages():
        if said.stream in others:
            continue
        kind = discovery_pb2.DeltaDiscoveryRequest if said.by_envoy else discovery_pb2.DeltaDiscoveryResponse
        try:
            message = kind.FromString(said.body)
        except DecodeError:
            others.add(said.stream)
            continue
        if said.stream not in streams and not message.type_url.startswith("type.googleapis.com/"):
            others.add(said.stream)
            continue
        streams.setdefault(said.stream, []).append((said.at, message))
    yield from streams.values()
