"""The comparer: takes copies of clients' requests from the Envoys, asks two versions of the model, and counts where the
answers differ.

Invariants: a copy is answered at once, with nothing, for its answer is thrown away; what it may cost is bounded, in
copies at a time, copies per second and bytes, and what is more is dropped and counted; only a model whose traffic
record asks for it is asked anything. Both versions are asked of one instance where one has both, so that two kinds of
hardware are not taken for two kinds of model, and one after the other.

Each version is judged against the other: where the other answers well, an answer that differs or is an error counts
against it. What says nothing of the model counts for nobody: a server that can't be reached or is too busy, and a
version that was unloaded a moment ago. (Which of the two is the new one is the leader's to know.)
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import unquote

import grpc
import grpc.aio

from control_plane.comparing.answers import difference
from control_plane.model import Endpoint, Health, Model
from control_plane.resources.wire import bytes_field, string_field, varint
from registry.addresses import join_address
from registry.policy.model import Difference

log = logging.getLogger(__name__)

HEADER = "x-modelplane-compare"
"""Of a copy: `MODEL FROM TO`, the name encoded as in a cluster's."""
SERVICE = "tensorflow.serving.PredictionService"

AT_ONCE = 16
PER_SECOND = 20.0
LARGEST_ANSWER = 4 << 20
"""Bytes; what is larger is not compared."""
DEADLINE = 10.0
"""Seconds that a version may take."""
_CHANNELS = 64
_EXAMPLE = 200
_OPTIONS = (
    ("grpc.max_receive_message_length", LARGEST_ANSWER),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
)
_SAYS_NOTHING = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)
# TF Serving's words for a version that it does not hold (basic_manager.cc).
_NOT_HELD = "Servable not found for request"


class Tally(Protocol):
    """Where the results go."""

    def compared(self, model: str, version: int, differed: bool, example: str) -> None:
        """One request was asked of this version and of another; `example`: what was different."""


class Picture(Protocol):
    """What the comparer must know of the registry (control_plane/catalog.py)."""

    @property
    def models(self) -> Mapping[str, Model]:
        """All models."""

    def difference(self, model: str) -> Difference | None:
        """What the model's policy says of answers that differ; None if it does not ask for a comparison."""


@dataclass(frozen=True, slots=True)
class Refused:
    """An error that tells something of the model."""

    text: str


@dataclass(frozen=True, slots=True)
class _Job:
    model: str
    versions: tuple[int, int]
    request: bytes


OUTCOMES = ("compared", "differed", "dropped", "skipped")


class Comparer:
    """Serves PredictionService. `run` works until cancelled; before and after it everything is dropped. `count` is told
    what became of each copy: one of OUTCOMES."""

    def __init__(
        self,
        picture: Picture,
        tally: Tally,
        count: Callable[[str], None] = lambda outcome: None,
        *,
        at_once: int = AT_ONCE,
        per_second: float = PER_SECOND,
        deadline: float = DEADLINE,
    ) -> None:
        self._picture, self._tally, self._count = picture, tally, count
        self._at_once, self._per_second, self._deadline = at_once, per_second, deadline
        self._group: asyncio.TaskGroup | None = None
        self._under_way = 0
        self._allowance, self._filled_at = at_once * 1.0, 0.0
        self._channels: OrderedDict[str, grpc.aio.Channel] = OrderedDict()

    def handlers(self) -> Sequence[grpc.GenericRpcHandler]:
        """What to hand to `grpc.aio.Server.add_generic_rpc_handlers`. No serialisers: bytes as they are."""
        method: Any = grpc.unary_unary_rpc_method_handler(self._predict)
        return (grpc.method_handlers_generic_handler(SERVICE, {"Predict": method}),)

    async def run(self) -> None:
        """Compare until cancelled."""
        try:
            async with asyncio.TaskGroup() as self._group:
                await asyncio.Event().wait()
        finally:
            self._group = None
            for channel in self._channels.values():
                await channel.close()
            self._channels.clear()

    async def _predict(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        header = next((value for key, value in context.invocation_metadata() or () if key == HEADER), "")
        job = read_header(header if isinstance(header, str) else "", request)
        if job is None:
            await context.abort(
                grpc.StatusCode.UNIMPLEMENTED,
                "this is a control plane, which answers no requests for models; ask an Envoy",
            )
        self._offer(job)
        return b""

    def _offer(self, job: _Job) -> None:
        wanted = self._wanted(job)
        if wanted is None or self._group is None:
            self._count("skipped")
        elif self._under_way >= self._at_once or not self._allowed():
            self._count("dropped")
        else:
            self._under_way += 1
            self._group.create_task(self._compare(job, wanted), name=f"compare-{job.model}")

    def _allowed(self) -> bool:
        """A bucket that fills with `per_second` and holds as much as may be under way at once."""
        now = asyncio.get_running_loop().time()
        self._allowance = min(self._at_once, self._allowance + (now - self._filled_at) * self._per_second)
        self._filled_at = now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True

    def _wanted(self, job: _Job) -> Difference | None:
        """Nobody who finds this port makes the control plane ask what it was not told to compare."""
        model = self._picture.models.get(job.model)
        if model is None or model.traffic is None or not model.traffic.compare or model.traffic.between is None:
            return None
        return self._picture.difference(job.model) if set(job.versions) == set(model.traffic.between) else None

    async def _compare(self, job: _Job, wanted: Difference) -> None:
        try:
            places = self._places(job)
            if places is None:
                self._count("skipped")
                return
            answers = [
                await self._ask(place, pinned(job.request, job.model, version))
                for version, place in zip(job.versions, places, strict=True)
            ]
            self._judge(job, answers, wanted)
        finally:
            self._under_way -= 1

    def _judge(self, job: _Job, answers: Sequence[bytes | Refused | None], wanted: Difference) -> None:
        differed = False
        judged = 0
        for at in (0, 1):
            subject, reference = answers[at], answers[1 - at]
            if subject is None or not isinstance(reference, bytes):
                continue
            said = subject.text if isinstance(subject, Refused) else difference(subject, reference, wanted)
            example = f"{said} by version {job.versions[1 - at]}" if isinstance(subject, bytes) and said else said
            self._tally.compared(job.model, job.versions[at], bool(said), example[:_EXAMPLE])
            differed, judged = differed or bool(said), judged + 1
        self._count(("differed" if differed else "compared") if judged else "skipped")

    def _places(self, job: _Job) -> tuple[Endpoint, Endpoint] | None:
        """One instance with both, else one with each."""
        model = self._picture.models.get(job.model)
        if model is None:
            return None
        held = [
            {one.instance: one for one in model.endpoints(version) if one.health is Health.READY}
            for version in job.versions
        ]
        if not all(held):
            return None
        both = sorted(held[0].keys() & held[1].keys())
        chosen = [random.choice(both)] * 2 if both else [random.choice(sorted(one)) for one in held]
        return held[0][chosen[0]], held[1][chosen[1]]

    async def _ask(self, place: Endpoint, request: bytes) -> bytes | Refused | None:
        method: Any = self._channel(join_address(place.address, place.grpc_port)).unary_unary(f"/{SERVICE}/Predict")
        try:
            answer: bytes = await method(request, timeout=self._deadline)
        except grpc.aio.AioRpcError as error:
            if error.code() in _SAYS_NOTHING or (error.details() or "").startswith(_NOT_HELD):
                return None
            return Refused(f"{error.code().name}: {error.details()}")
        return answer

    def _channel(self, target: str) -> grpc.aio.Channel:
        channel = self._channels.get(target)
        if channel is None:
            channel = self._channels[target] = grpc.aio.insecure_channel(target, options=_OPTIONS)
            if len(self._channels) > _CHANNELS and self._group is not None:
                # The one that was not asked for the longest: more than can be under way were asked since.
                _, oldest = self._channels.popitem(last=False)
                self._group.create_task(oldest.close(), name="close")
        self._channels.move_to_end(target)
        return channel


def read_header(value: str, request: bytes) -> _Job | None:
    """What is to be compared; None for what is no such header."""
    parts = value.split(" ")
    if len(parts) != 3 or not parts[0] or not all(part.isascii() and part.isdigit() for part in parts[1:]):
        return None
    return _Job(unquote(parts[0]), (int(parts[1]), int(parts[2])), request)


def pinned(request: bytes, model: str, version: int) -> bytes:
    """A PredictRequest that names the version. A message that is there twice is merged by protobuf, and of a oneof the
    last one counts, so that this takes the place of whatever version or label the client named, and nothing else."""
    # PredictRequest.model_spec (1), ModelSpec.name (1) and .version (2), Int64Value.value (1), a varint.
    number = b"\x08" + varint(version)
    return request + bytes_field(1, string_field(1, model) + bytes_field(2, number))
