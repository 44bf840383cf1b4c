"""What operators can read of each request: a real Envoy's log in JSON, and its spans."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support.echo import EchoRest, EchoServer
from tests.support.fleet import Fleet, model
from tests.support.requests import request
from tests.support.waiting import eventually

_EXPORT = "opentelemetry.proto.collector.trace.v1.TraceService"


def lines(path: Path) -> list[dict[str, Any]]:
    """Envoy writes its file every ten seconds, or when there is much; whole lines, the last one may not be."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


async def test_every_request_is_a_line_of_json(tmp_path: Path) -> None:
    """Waits for Envoy to write its log."""
    path = tmp_path / "access.json"
    fleet = Fleet(tmp_path, access_log=str(path))
    async with EchoServer("a") as echo, EchoRest("r") as rest:
        try:
            base = model('quo"te é', {3: [echo.port]}, rest=rest.port)
            await fleet.start([base, model("m", {1: [echo.port], 2: [echo.port]})], pins={"m": 2})
            assert (await fleet.call(request('quo"te é'))).code is grpc.StatusCode.OK
            assert (await fleet.call(request("m"))).code is grpc.StatusCode.OK
            # What a client says under the log's names is not believed.
            await fleet.call(request("m", 1), **{"x-modelplane-logged-model": "another"})
            assert (await fleet.call(request("nobody"))).code is grpc.StatusCode.NOT_FOUND
            await asyncio.to_thread(fleet.rest, "/v1/models/quo%22te%20%C3%A9/versions/3:predict", b"{}")
            await eventually(lambda: len(lines(path)) == 5, "five lines", 30)
        finally:
            await fleet.close()
    told = [(one["listener"], one["model"], one["version"], one["instance"], one["grpc_status"]) for one in lines(path)]
    assert told == [
        ("grpc", 'quo"te é', None, f"i{echo.port}", "OK"),
        ("grpc", "m", "2", f"i{echo.port}", "OK"),
        ("grpc", "m", "1", f"i{echo.port}", "OK"),
        ("grpc", "nobody", None, None, "NotFound"),
        ("rest", 'quo"te é', "3", f"i{echo.port}", None),
    ]
    assert all(isinstance(one["milliseconds"], int) and one["code"] for one in lines(path))


@asynccontextmanager
async def collecting(spans: list[bytes], port: int = 0) -> AsyncIterator[int]:
    """An OpenTelemetry collector that keeps what it gets as it came; its port."""

    async def export(body: bytes, _: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        spans.append(body)
        return b""

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(export)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_EXPORT, {"Export": handler}),))
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def test_requests_are_traced_with_model_and_version(tmp_path: Path, echo: EchoServer) -> None:
    """Waits for Envoy to flush its spans. The client's own trace is continued, and the server is told of it."""
    spans: list[bytes] = []
    async with collecting(spans) as port:
        fleet = Fleet(tmp_path, tracing_collector=f"localhost:{port}", tracing_percent=100.0)
        try:
            await fleet.start([model("digits", {7: [echo.port]})], pins={"digits": 7})
            assert (await fleet.call(request("digits"))).code is grpc.StatusCode.OK
            parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
            assert (await fleet.call(request("digits"), traceparent=parent)).code is grpc.StatusCode.OK
            client = bytes.fromhex("0af7651916cd43dd8448eb211c80319c")
            await eventually(lambda: client in b"".join(spans), "the span", 30)
        finally:
            await fleet.close()
    text = b"".join(spans)
    assert text.count(client) == 1
    assert text.count(b"model\x12") == 2, "both requests have the tag, one with the client's trace and one with Envoy's"
    assert b"digits" in text
    assert b"modelplane-envoy" in text
    continued = [str(one["traceparent"]) for one in echo.metadata if client.hex() in str(one.get("traceparent"))]
    assert len(continued) == 1
    assert "b7ad6b7169203331" not in continued[0], "the server's parent is Envoy's span"


@pytest.mark.parametrize("collector", ["127.0.0.1:9", "no-such-host.invalid:4317"])
async def test_a_collector_that_is_away_costs_no_request(tmp_path: Path, echo: EchoServer, collector: str) -> None:
    fleet = Fleet(tmp_path, tracing_collector=collector, tracing_percent=100.0)
    try:
        await fleet.start([model("m", {1: [echo.port]})])
        for _ in range(20):
            assert (await fleet.call(request("m"))).code is grpc.StatusCode.OK
    finally:
        await fleet.close()
