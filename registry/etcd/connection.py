"""Calls to whichever member answers. Invariant: a call ends within its deadline, and a write that may have been applied
is never sent twice.

One channel per member, one of them current; a member that doesn't answer makes the next one current. A member that has
no leader says so at once and is left likewise: every call asks for that (see `_REQUIRE_LEADER`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from registry.etcd.auth import TokenSource
from registry.etcd.config import EtcdConfig
from registry.etcd.errors import (
    DeadlineExceeded,
    EtcdError,
    PermissionDenied,
    TlsFilesUnreadable,
    TokenRejected,
    Unavailable,
    from_status,
)
from registry.pb import etcd_pb2 as pb

log = logging.getLogger(__name__)

Response = TypeVar("Response", bound=Message)
Metadata = tuple[tuple[str, str], ...]

MAX_BACKOFF = 1.0
_FIRST_BACKOFF = 0.05
_LARGEST_MESSAGE = 2**31 - 1
"""Bytes; what etcd itself sends at most. gRPC's default of 4 MiB is less than a watch's replay of 20,000 keys."""

_REQUIRE_LEADER: Metadata = (("hasleader", "true"),)
"""etcd's `WithRequireLeader`. Without it a watch on a member that lost its quorum stays silent for ever, and a call to
it waits for the leader to come back instead of for another member's answer."""

_CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    # gRPC's core waits this long (60 s unless told) for a ping's answer, whatever the keepalive timeout says.
    ("grpc.http2.ping_timeout_ms", 3_000),
    # etcd answers pings on a connection without a stream with GOAWAY too_many_pings.
    ("grpc.keepalive_permit_without_calls", 0),
    # Pings may go on however long no data is sent: an idle watch is the normal case.
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Also how long one attempt to connect may take: a frozen etcd's kernel accepts, but nobody answers.
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.max_receive_message_length", _LARGEST_MESSAGE),
    ("grpc.max_send_message_length", _LARGEST_MESSAGE),
    # Connections of our own: another channel of this process to the same address would share its backoff.
    ("grpc.use_local_subchannel_pool", 1),
    # etcd is named by address; a proxy from the environment must not come between.
    ("grpc.enable_http_proxy", 0),
)


@dataclass(frozen=True)
class Method(Generic[Response]):
    """A method of etcd's API by its path, with the type that it answers. `leaderless`: a member is to answer even while
    it knows no leader."""

    path: str
    response: type[Response]
    leaderless: bool = False


_AUTHENTICATE = Method("/etcdserverpb.Auth/Authenticate", pb.AuthenticateResponse)


class _Member:
    def __init__(self, address: str, channel: grpc.aio.Channel) -> None:
        self.address, self.channel = address, channel
        self.failing = False
        self.silent = False
        """It left a question without an answer, and has answered none since."""
        self.streams: set[Stream[Any]] = set()


class Stream(Generic[Response]):
    """One bidirectional call to one member; its failures are EtcdErrors."""

    def __init__(self, call: Any, address: str, answered: Callable[[], None]) -> None:
        self._call = call
        self._answered = answered
        self._left = ""
        self.address = address

    def leave(self, why: str) -> None:
        """End it as if the member had; `why` is what the one who reads it is told."""
        self._left = why
        self._call.cancel()

    async def ask(self, request: Message, timeout: float) -> Response:
        """Send one message and wait for the next one to come, `timeout` seconds in all. Raises EtcdError."""
        try:
            async with asyncio.timeout(timeout):
                await self._guard(self._call.write(request))
                response = await self.receive()
        except TimeoutError:
            raise DeadlineExceeded(f"etcd at {self.address}: no answer within {timeout:.1f} s") from None
        self._answered()
        return response

    async def receive(self) -> Response:
        """The next message, however long it takes: a dead connection is noticed by its pings. Raises EtcdError."""
        response = await self._guard(self._call.read())
        if response is grpc.aio.EOF:
            raise await self._ended()
        message: Response = response
        return message

    async def _guard(self, step: Awaitable[Any]) -> Any:
        try:
            return await step
        except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
            raise await self._ended() from None
        except asyncio.CancelledError:
            _raise_if_ours()
            raise await self._ended() from None

    async def _ended(self) -> EtcdError:
        if self._left:
            return Unavailable(f"etcd at {self.address}: {self._left}")
        code, details = await self._call.code(), await self._call.details()
        if code is grpc.StatusCode.OK:
            code, details = grpc.StatusCode.UNAVAILABLE, "the member ended the stream"
        return from_status(code, details or "", self.address)


class Connection:
    """The channels to all members of one cluster. Use between `open` and `close`."""

    def __init__(self, config: EtcdConfig) -> None:
        self.config = config
        self._members: list[_Member] = []
        self._current = 0
        self._tokens = TokenSource(self._authenticate) if config.user is not None else None

    def open(self) -> None:
        """Make the channels; nothing is dialled before the first call. Raises TlsFilesUnreadable."""
        credentials = _credentials(self.config) if self.config.tls else None
        for address in self.config.addresses:
            channel = (
                grpc.aio.secure_channel(address, credentials, options=_CHANNEL_OPTIONS)
                if credentials is not None
                else grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
            )
            self._members.append(_Member(address, channel))

    async def close(self) -> None:
        """Close all channels; calls under way are cancelled."""
        members, self._members = self._members, []
        for member in members:
            await member.channel.close()

    async def call(
        self, method: Method[Response], request: Message, *, idempotent: bool, timeout: float | None = None
    ) -> Response:
        """One call, answered within `timeout` seconds (default: the config's), by the next member if need be.

        What isn't idempotent is sent again only if it certainly never left, or was refused for its token. Raises
        EtcdError.
        """
        timeout = self.config.timeout if timeout is None else timeout
        deadline = time.monotonic() + timeout
        backoff = _FIRST_BACKOFF
        tokens_refused = 0
        while True:
            member = self._member()
            try:
                return await self._attempt(member, method, request, deadline)
            except TokenRejected:
                tokens_refused += 1
                if tokens_refused > 2:
                    raise
            except Unavailable as error:
                self._suspect(member, error)
                if (error.sent and not idempotent) or time.monotonic() + backoff >= deadline:
                    raise
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, MAX_BACKOFF)

    async def _attempt(self, member: _Member, method: Method[Response], request: Message, deadline: float) -> Response:
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + deadline - time.monotonic()):
                token = await self._tokens.get() if self._tokens is not None else None
        except TimeoutError:
            raise _not_sent(DeadlineExceeded(f"etcd at {member.address}: no token in time")) from None
        remaining = deadline - time.monotonic()
        # A frozen member must leave time to ask another one.
        share = remaining if len(self._members) == 1 else max(remaining / 2, min(remaining, 1.0))
        try:
            response = await self._unary(member, method, request, share, _metadata(method, token))
        except TokenRejected:
            if self._tokens is not None and token is not None:
                self._tokens.expire(token)
            raise
        self._answered(member)
        return response

    async def _unary(
        self, member: _Member, method: Method[Response], request: Message, timeout: float, metadata: Metadata
    ) -> Response:
        callable_ = member.channel.unary_unary(
            method.path,
            request_serializer=_serialize,
            response_deserializer=method.response.FromString,
        )
        try:
            response: Response = await callable_(request, timeout=max(timeout, 0.001), metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise from_status(error.code(), error.details() or "", member.address) from None
        except asyncio.CancelledError:
            _raise_if_ours()
            raise from_status(grpc.StatusCode.CANCELLED, "", member.address) from None
        return response

    @asynccontextmanager
    async def stream(self, method: Method[Response]) -> AsyncIterator[Stream[Response]]:
        """One bidirectional call to the current member, without a deadline; a failure in the body makes the next member
        current. Ends as Unavailable when this member is silent while another one answers: the pings of its connection
        would tell only after 13 s. Raises EtcdError."""
        member = self._member()
        token = await self._tokens.get() if self._tokens is not None else None
        callable_ = member.channel.stream_stream(
            method.path,
            request_serializer=_serialize,
            response_deserializer=method.response.FromString,
        )
        call = callable_(metadata=_metadata(method, token))
        stream = Stream[Response](call, member.address, lambda: self._answered(member))
        member.streams.add(stream)
        try:
            yield stream
        except (TokenRejected, PermissionDenied):
            # etcd 3.5.1 tells a watch whose token has expired that permission is denied.
            if self._tokens is not None and token is not None:
                self._tokens.expire(token)
            raise
        except Unavailable as error:
            self._suspect(member, error)
            raise
        finally:
            member.streams.discard(stream)
            call.cancel()

    def _member(self) -> _Member:
        if not self._members:
            raise _not_sent(Unavailable("the connection to etcd is closed"))
        return self._members[self._current % len(self._members)]

    def _answered(self, member: _Member) -> None:
        member.silent = False
        if member.failing:
            member.failing = False
            log.info("etcd at %s answers again", member.address)
        for other in self._members:
            if other.silent and other is not member:
                other.silent = False
                for stream in tuple(other.streams):
                    stream.leave(f"silent, while {member.address} answers")

    def _suspect(self, member: _Member, error: Unavailable) -> None:
        member.silent = member.silent or isinstance(error, DeadlineExceeded)
        # Calls that fail together move on by one member, not by one each.
        if len(self._members) > 1 and member is self._member():
            self._current += 1
            # With none that answers each has its turn again and again: said once.
            log.log(logging.DEBUG if member.failing else logging.INFO, "%s; asking the next", error)
            member.failing = True

    async def _authenticate(self) -> str:
        request = pb.AuthenticateRequest(name=self.config.user or "", password=self.config.password or "")
        member = self._member()
        try:
            answer = await self._unary(
                member, _AUTHENTICATE, request, self.config.timeout, _metadata(_AUTHENTICATE, None)
            )
        except Unavailable as error:
            raise _not_sent(error) from None
        return answer.token


def _not_sent(error: Unavailable) -> Unavailable:
    error.sent = False
    return error


def _raise_if_ours() -> None:
    """Re-raise the CancelledError being handled if this task was cancelled.

    grpc.aio raises the same for a call that the member cancelled (`_call.py`: `cancelled()` looks at the status alone),
    and that is no reason to end the task.
    """
    task = asyncio.current_task()
    if task is None or task.cancelling():
        raise


def _metadata(method: Method[Any], token: str | None) -> Metadata:
    leader = () if method.leaderless else _REQUIRE_LEADER
    return leader if token is None else (*leader, ("token", token))


def _serialize(request: Message) -> bytes:
    return request.SerializeToString()


def _credentials(config: EtcdConfig) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(_read(config.ca_cert), _read(config.key), _read(config.cert))


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsFilesUnreadable(f"TLS file {path} can't be read: {error.strerror}") from error
