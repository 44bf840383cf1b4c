"""Checks of suspects against real servers: gRPC with and without health, a silent one, none, and one out of reach."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from control_plane.suspect_checks import Outcome, SuspectChecks, Target, check
from control_plane.suspects import SuspectPolicy, Verdict
from tests.support.processes import free_port

HERE = "127.0.0.1"


class ModelStatus(grpc.GenericRpcHandler):
    """GetModelStatus of a server that knows no model but `known`."""

    def __init__(self, known: str) -> None:
        self._known = known.encode()

    def service(self, handler_call_details: Any) -> Any:
        if not handler_call_details.method.endswith("/GetModelStatus"):
            return None

        async def answer(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
            if not request.endswith(self._known):
                await context.abort(grpc.StatusCode.NOT_FOUND, "Could not find any versions of model")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


@asynccontextmanager
async def server(*, status: int | None = None, known: str | None = None, host: str = HERE) -> AsyncIterator[int]:
    running = grpc.aio.server()
    if status is not None:
        servicer = health.HealthServicer()
        servicer.set("", status)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, running)
    if known is not None:
        running.add_generic_rpc_handlers((ModelStatus(known),))
    port = running.add_insecure_port(f"{host}:0")
    await running.start()
    try:
        yield port
    finally:
        await running.stop(None)


async def outcome(port: int, address: str = HERE, timeout: float = 5.0) -> Outcome:
    return await check(Target("i", address, port, "m"), timeout)


async def test_any_answer_over_grpc_shows_that_it_lives() -> None:
    async with server() as port:
        assert await outcome(port) is Outcome.ANSWERED


async def test_a_server_that_offers_health_is_believed() -> None:
    async with server(status=health_pb2.HealthCheckResponse.SERVING, known="m") as port:
        assert await outcome(port) is Outcome.ANSWERED
    async with server(status=health_pb2.HealthCheckResponse.NOT_SERVING, known="m") as port:
        assert await outcome(port) is Outcome.UNHEALTHY


async def test_another_server_at_the_same_address_is_found_out() -> None:
    async with server(known="another model") as port:
        assert await outcome(port) is Outcome.ANOTHER


async def test_ipv6() -> None:
    async with server(host="[::1]") as port:
        assert await outcome(port, "::1") is Outcome.ANSWERED


async def test_refused_silent_and_out_of_reach_are_told_apart() -> None:
    assert await outcome(free_port()) is Outcome.REFUSED
    # As of a process that is stopped: the kernel accepts for it.
    with socket.create_server((HERE, 0)) as silent:
        assert await outcome(silent.getsockname()[1], timeout=0.3) is Outcome.SILENT
    # With its backlog full, the kernel drops what a client sends, as a firewall does.
    with socket.create_server((HERE, 0), backlog=0) as full, ExitStack() as clients:
        for _ in range(3):
            client = clients.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        assert await outcome(full.getsockname()[1], timeout=0.3) is Outcome.UNREACHABLE


async def test_suspects_are_checked_while_there_are_any_and_somebody_else_if_none_answers() -> None:
    dead = Target("dead", HERE, free_port(), "m")
    rounds: list[Mapping[str, tuple[Verdict, str]]] = []
    suspects: list[Target] = []
    enough = asyncio.Event()

    def told(verdicts: Mapping[str, tuple[Verdict, str]]) -> None:
        rounds.append(verdicts)
        if len(rounds) == 2:
            suspects.clear()
            enough.set()

    async with server(known="") as port:
        control = Target("control", HERE, port, "")
        policy = SuspectPolicy(check_interval=0.05, check_timeout=5.0)
        checks = SuspectChecks(policy, lambda: suspects, lambda: control, told)
        running = asyncio.create_task(checks.run())
        checks.stir()
        await asyncio.sleep(0)
        assert rounds == []
        suspects.append(dead)
        checks.stir()
        async with asyncio.timeout(20):
            await enough.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert [verdicts["dead"][0] for verdicts in rounds] == [Verdict.UNKNOWN, Verdict.DEAD]
