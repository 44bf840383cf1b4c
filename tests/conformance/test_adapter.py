"""The adapter itself: what it says to a call that makes no sense, and what its command says."""

from __future__ import annotations

import socket
from contextlib import AsyncExitStack

import grpc
import pytest
from google.protobuf import any_pb2

from control_plane.xds.limits import Limits
from tests.conformance import adapter_pb2
from tests.conformance.adapter import SERVICE, main, serving
from tests.conformance.client import CDS, EDS, RDS, Target, Variant


async def call(address: str, method: str, request) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        await channel.unary_unary(f"/{SERVICE}/{method}", request_serializer=type(request).SerializeToString)(request)


@pytest.mark.parametrize(
    ("method", "request_", "code", "says"),
    [
        ("AddResource", {"typeUrl": CDS, "resourceName": "a"}, grpc.StatusCode.ALREADY_EXISTS, "UpdateResource"),
        ("UpdateResource", {"typeUrl": CDS, "resourceName": "b"}, grpc.StatusCode.NOT_FOUND, "AddResource"),
        ("RemoveResource", {"typeUrl": EDS, "resourceName": "a"}, grpc.StatusCode.NOT_FOUND, "no type.googleapis"),
        ("AddResource", {"typeUrl": "x/Secret", "resourceName": "a"}, grpc.StatusCode.INVALID_ARGUMENT, "x/Secret"),
    ],
)
async def test_a_call_that_makes_no_sense_is_refused_with_the_mend(method, request_, code, says):
    async with serving("127.0.0.1:0", "127.0.0.1:0") as where:
        await call(where.adapter, "AddResource", adapter_pb2.ResourceRequest(typeUrl=CDS, resourceName="a"))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(where.adapter, method, adapter_pb2.ResourceRequest(**request_))
    assert raised.value.code() == code
    assert says in raised.value.details()


async def test_a_client_that_acknowledges_under_the_wrong_type_is_served_after_its_patience():
    """ii/xds-test-harness, on an aggregated state-of-the-world stream with two types: it answers every response with
    the type and the names of its first request. So its EDS is never ACKed, and a route waits for that."""
    async with serving("127.0.0.1:0", "127.0.0.1:0", Limits(gate_seconds=0.2)) as where, AsyncExitStack() as stack:
        adapter = await stack.enter_async_context(grpc.aio.insecure_channel(where.adapter))
        xds = await stack.enter_async_context(grpc.aio.insecure_channel(where.xds))
        target = Target(stack, adapter, xds, exact=True)
        await target.set({RDS: "abc", EDS: "abc"})
        client = target.client(Variant(delta=False, aggregated=True))
        await client.ask(RDS, "b")
        routes = await client.get(RDS)
        await client.ask(EDS, "b")
        endpoints = await client.read(EDS)
        await client.write(RDS, resource_names=["b"], version_info=routes.version, response_nonce=endpoints.nonce)
        await target.update(RDS, "b", "2")
        assert (await client.read(RDS)).versions == {"b": "2"}


async def test_what_is_no_resource_is_refused():
    nonsense = any_pb2.Any(type_url=CDS, value=b"\xff\xff")
    async with serving("127.0.0.1:0", "127.0.0.1:0") as where:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(where.adapter, "SetState", adapter_pb2.SetStateRequest(resources=[nonsense]))
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_an_address_that_is_taken_is_named(capfd):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert main(["--adapter", address, "--xds", "127.0.0.1:0"]) == 1
    assert address in capfd.readouterr().out


def test_help_says_how_to_run_both_suites(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert "pytest tests/conformance" in text
    assert "xds-test-harness" in text
