"""The calls that a monitor makes to a model server, on one channel. Invariant: each has a deadline of its own, and a
server that can't be reached fails them at once instead of keeping them waiting.

TensorFlow Serving has no API that lists models, so status is asked by name. Status answers come back as bytes: nearly
all are equal to the one before, and comparing is all that they cost then.
"""

from __future__ import annotations

import re
from types import TracebackType
from typing import TypeAlias, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from monitor.pb import tfs_pb2 as tfs
from monitor.servables import PollFailure, VersionStatus
from registry.addresses import join_address
from registry.records import ServableState

_STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
_RELOAD = "/tensorflow.serving.ModelService/HandleReloadConfigRequest"
_METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
PREDICT = "/tensorflow.serving.PredictionService/Predict"
CLASSIFY = "/tensorflow.serving.PredictionService/Classify"
REGRESS = "/tensorflow.serving.PredictionService/Regress"

_OPTIONS = (
    # A signature's metadata and an answer may be larger than gRPC's 4 MB.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A proxy of the environment is never meant for the server next door.
    ("grpc.enable_http_proxy", 0),
    # Its port opens when its models are loaded, and that should be seen as soon as a poll would see it.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.min_reconnect_backoff_ms", 2000),
    # A frozen or vanished peer: without this, TCP alone would decide when to connect anew.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # Channels with equal arguments share connections otherwise, and a test's second server its fate.
    ("grpc.use_local_subchannel_pool", 1),
)
_Method: TypeAlias = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
_SYSTEM_ERROR = re.compile(r"Failed to connect to remote host: (?:connect: )?([^()]+?)(?: \(\d+\))?$")


class CallError(Exception):
    """A call that was answered with an error, or not at all: `code` and the server's own text."""

    def __init__(self, code: grpc.StatusCode, detail: str) -> None:
        super().__init__(f"{code.name}: {detail}")
        self.code = code
        self.detail = detail

    def as_failure(self) -> PollFailure:
        """What it means if it was a look at the status."""
        return PollFailure(connection=self.code is grpc.StatusCode.UNAVAILABLE, detail=str(self))


class ServerClient:
    """One model server; an async context manager. Connects at the first call."""

    def __init__(self, host: str, port: int) -> None:
        self.target = join_address(host, port)
        self._channel: grpc.aio.Channel | None = None
        self._get_status: _Method | None = None

    async def __aenter__(self) -> ServerClient:
        self._channel = grpc.aio.insecure_channel(self.target, options=_OPTIONS)
        self._get_status = self._method(_STATUS)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._channel is not None:
            await self._channel.close()

    async def status(self, request: bytes, timeout: float) -> bytes:
        """GetModelStatus, in and out as bytes; empty for a model that the server does not know. Raises CallError."""
        assert self._get_status is not None, "use it as a context manager"
        try:
            return await self._get_status(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return b""
            raise _call_error(error) from None

    async def signatures(self, model: str, version: int, timeout: float) -> dict[str, tfs.SignatureDef]:
        """GetModelMetadata's signature_def. Raises CallError."""
        request = tfs.GetModelMetadataRequest(model_spec=model_spec(model, version), metadata_field=["signature_def"])
        raw = await self.call(_METADATA, request.SerializeToString(), timeout)
        try:
            metadata = tfs.GetModelMetadataResponse.FromString(raw).metadata
            # Read whatever type URL it came under: the official one has another package name than our copy.
            return dict(tfs.SignatureDefMap.FromString(metadata["signature_def"].value).signature_def)
        except DecodeError as error:
            raise CallError(grpc.StatusCode.INTERNAL, f"the metadata can't be read: {error}") from error

    async def reload(self, config: tfs.ModelServerConfig, timeout: float) -> None:
        """HandleReloadConfigRequest; monitor/reload.py knows what its answers are worth. Raises CallError."""
        await self.call(_RELOAD, tfs.ReloadConfigRequest(config=config).SerializeToString(), timeout)

    async def call(self, method: str, request: bytes, timeout: float) -> bytes:
        """Any unary call, in and out as bytes. Raises CallError."""
        try:
            return await self._method(method)(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise _call_error(error) from None

    def _method(self, method: str) -> _Method:
        assert self._channel is not None, "use it as a context manager"
        # Without serialisers grpc passes bytes through; its type stubs don't know.
        return cast(_Method, self._channel.unary_unary(method))


def model_spec(model: str, version: int, signature: str = "") -> tfs.ModelSpec:
    """A spec that names the version: a probe must never be answered by another one."""
    spec = tfs.ModelSpec(name=model, signature_name=signature)
    spec.version.value = version
    return spec


def status_request(model: str) -> bytes:
    """GetModelStatus for all versions of a model, serialised once for all polls."""
    return tfs.GetModelStatusRequest(model_spec=tfs.ModelSpec(name=model)).SerializeToString()


def read_status(answer: bytes) -> tuple[VersionStatus, ...]:
    """The versions of a GetModelStatus answer. Raises CallError for one that can't be read."""
    try:
        response = tfs.GetModelStatusResponse.FromString(answer)
    except DecodeError as error:
        raise CallError(grpc.StatusCode.INTERNAL, f"the status can't be read: {error}") from error
    return tuple(_version(status) for status in response.model_version_status if status.state != 0)


def _version(status: tfs.ModelVersionStatus) -> VersionStatus:
    state = ServableState[tfs.ModelVersionStatus.State.Name(status.state)]
    code, message = status.status.error_code, status.status.error_message
    return VersionStatus(status.version, state, f"{_code_name(code)}: {message}" if code else "")


_CODES = {code.value[0]: code.name for code in grpc.StatusCode}


def _code_name(code: int) -> str:
    return _CODES.get(code, f"code {code}")


def _call_error(error: grpc.aio.AioRpcError) -> CallError:
    text = error.details() or ""
    # "failed to connect to all addresses; last error: UNKNOWN: ipv4:…: Failed to connect to remote host: Connection
    # refused": only the last words are of use to a reader.
    if found := _SYSTEM_ERROR.search(text):
        text = found[1]
    return CallError(error.code(), text)
