"""Active checks of suspects: does the server behind a lost lease still answer?

Invariants: only suspects are checked, so a healthy fleet pays nothing; once per instance, whatever it serves; a failure
counts only while something answers from here, for a control plane that can reach no instance has learnt nothing.

A check is a TCP connection, then gRPC's health service (a server without it answers UNIMPLEMENTED, which is an answer:
TensorFlow Serving has it only with a flag), then GetModelStatus of one of its models: whoever does not know that is
another server at an address that was used again. A connection that comes to nothing (no route, a dropped packet) is no
proof; one that is refused, or is accepted and then stays silent, is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from control_plane.resources.wire import bytes_field, string_field
from control_plane.suspects import SuspectPolicy, Verdict

log = logging.getLogger(__name__)

_AT_ONCE = 16
"""Checks under way; a fleet of thousands that is lost as a whole is checked in turns."""
_FAILURES = 2
"""In a row, to be called dead: a server may be busy for once."""
_TRUSTED = 30.0
"""Seconds for which one answer shows that instances can be reached from here."""

_HEALTH_CHECK = "/grpc.health.v1.Health/Check"
_MODEL_STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
_CHANNEL = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))


class Outcome(Enum):
    """What came of one check."""

    ANSWERED = "answers"
    REFUSED = "refuses connections"
    SILENT = "accepts connections, but does not answer"
    UNHEALTHY = "says that it is not healthy"
    ANOTHER = "another server is there now"
    UNREACHABLE = "can't be reached from here"


@dataclass(frozen=True, slots=True)
class Target:
    """Whom to check, and a model that it has."""

    instance: str
    address: str
    port: int
    model: str


@dataclass(slots=True)
class Verdicts:
    """Outcomes in, verdicts out. Pure."""

    _failures: dict[str, int] = field(default_factory=dict)
    _answered_at: float = float("-inf")

    def judge(self, outcomes: Mapping[str, Outcome], now: float, *, others_answer: bool = False) -> dict[str, Verdict]:
        """What one round of checks says of each instance. `others_answer`: one that is no suspect was reached."""
        if others_answer or Outcome.ANSWERED in outcomes.values():
            self._answered_at = now
        trusted = now - self._answered_at <= _TRUSTED
        verdicts = {}
        for instance, outcome in outcomes.items():
            if outcome is Outcome.ANSWERED:
                self._failures.pop(instance, None)
                verdicts[instance] = Verdict.ANSWERS
                continue
            if outcome is not Outcome.UNREACHABLE:
                self._failures[instance] = self._failures.get(instance, 0) + 1
            dead = trusted and self._failures.get(instance, 0) >= _FAILURES
            verdicts[instance] = Verdict.DEAD if dead else Verdict.UNKNOWN
        return verdicts

    def keep(self, instances: Sequence[str]) -> None:
        """Forget all others."""
        self._failures = {name: count for name, count in self._failures.items() if name in instances}


async def check(target: Target, timeout: float) -> Outcome:
    """Check one instance; takes no longer than `timeout` seconds, or a little."""
    try:
        async with asyncio.timeout(timeout):
            _, writer = await asyncio.open_connection(target.address, target.port)
            writer.close()
    except ConnectionRefusedError:
        return Outcome.REFUSED
    except (OSError, TimeoutError):
        return Outcome.UNREACHABLE
    host = f"[{target.address}]" if ":" in target.address else target.address
    async with grpc.aio.insecure_channel(f"{host}:{target.port}", options=_CHANNEL) as channel:
        try:
            async with asyncio.timeout(timeout):
                return await _ask(channel, target.model, timeout)
        except TimeoutError:
            return Outcome.SILENT


async def _ask(channel: grpc.aio.Channel, model: str, timeout: float) -> Outcome:
    # Bytes as they are: no serialisers.
    health: Any = channel.unary_unary(_HEALTH_CHECK)
    status: Any = channel.unary_unary(_MODEL_STATUS)
    try:
        answer: bytes = await health(b"", timeout=timeout)
        if health_pb2.HealthCheckResponse.FromString(answer).status == health_pb2.HealthCheckResponse.NOT_SERVING:
            return Outcome.UNHEALTHY
    except grpc.aio.AioRpcError as error:
        if _unanswered(error):
            return Outcome.SILENT
    try:
        # GetModelStatusRequest.model_spec (1), ModelSpec.name (1)
        await status(bytes_field(1, string_field(1, model)), timeout=timeout)
    except grpc.aio.AioRpcError as error:
        if _unanswered(error):
            return Outcome.SILENT
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return Outcome.ANOTHER
    return Outcome.ANSWERED


def _unanswered(error: grpc.aio.AioRpcError) -> bool:
    return error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class SuspectChecks:
    """Checks whoever `suspects()` names, every interval. `control()`: somebody who is no suspect, to tell a fleet that
    is dead from a control plane that is cut off. `on_verdicts` takes each round's verdicts with their reasons."""

    def __init__(
        self,
        policy: SuspectPolicy,
        suspects: Callable[[], Sequence[Target]],
        control: Callable[[], Target | None],
        on_verdicts: Callable[[Mapping[str, tuple[Verdict, str]]], None],
    ) -> None:
        self._policy = policy
        self._suspects, self._control, self._on_verdicts = suspects, control, on_verdicts
        self._verdicts = Verdicts()
        self._wanted = asyncio.Event()
        self._slots = asyncio.Semaphore(_AT_ONCE)

    def stir(self) -> None:
        """There may be suspects."""
        self._wanted.set()

    async def run(self) -> None:
        """Check until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while targets := self._suspects():
                await self._round(targets)
                await asyncio.sleep(self._policy.check_interval)
            self._verdicts.keep(())

    async def _round(self, targets: Sequence[Target]) -> None:
        found = await asyncio.gather(*(self._one(target) for target in targets))
        outcomes = {target.instance: outcome for target, outcome in zip(targets, found, strict=True)}
        control = None if Outcome.ANSWERED in found else self._control()
        others_answer = control is not None and await self._one(control) is Outcome.ANSWERED
        now = asyncio.get_running_loop().time()
        verdicts = self._verdicts.judge(outcomes, now, others_answer=others_answer)
        self._verdicts.keep(list(outcomes))
        self._on_verdicts({name: (verdict, outcomes[name].value) for name, verdict in verdicts.items()})

    async def _one(self, target: Target) -> Outcome:
        async with self._slots:
            return await check(target, self._policy.check_timeout)
