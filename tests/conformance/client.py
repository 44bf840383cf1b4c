"""A client of any xDS server, in all four variants, that says only what a test tells it to say.

Invariant: every response is handed to the test exactly once, in the order in which the server sent it; nothing is
acknowledged unasked.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import grpc
from envoy.service.discovery.v3 import discovery_pb2
from google.rpc import status_pb2

from control_plane.resources.resource import (
    CLUSTER,
    CLUSTER_LOAD_ASSIGNMENT,
    EXTENSION_CONFIG,
    LISTENER,
    ROUTE_CONFIGURATION,
)
from tests.conformance import adapter_pb2
from tests.conformance.adapter import SERVICE
from tests.conformance.state import MESSAGES, example, name_of

LDS, RDS, CDS, EDS, ECDS = LISTENER, ROUTE_CONFIGURATION, CLUSTER, CLUSTER_LOAD_ASSIGNMENT, EXTENSION_CONFIG
KINDS = {"LDS": LDS, "RDS": RDS, "CDS": CDS, "EDS": EDS, "ECDS": ECDS}
ROOTS = frozenset({LDS, CDS})
"""The types whose state-of-the-world responses hold everything, and that can be asked for as a whole."""

_SERVICES = {
    LDS: "envoy.service.listener.v3.ListenerDiscoveryService/{}Listeners",
    RDS: "envoy.service.route.v3.RouteDiscoveryService/{}Routes",
    CDS: "envoy.service.cluster.v3.ClusterDiscoveryService/{}Clusters",
    EDS: "envoy.service.endpoint.v3.EndpointDiscoveryService/{}Endpoints",
    ECDS: "envoy.service.extension.v3.ExtensionConfigDiscoveryService/{}ExtensionConfigs",
}
_AGGREGATED = "envoy.service.discovery.v3.AggregatedDiscoveryService/{}AggregatedResources"
NODE = "conformance"
PATIENCE = 10.0
"""Seconds after which a response that must come has not come."""


@dataclass(frozen=True)
class Variant:
    """One of the protocol's four."""

    delta: bool
    aggregated: bool

    def __str__(self) -> str:
        return f"{'delta' if self.delta else 'sotw'}-{'aggregated' if self.aggregated else 'separate'}"

    def method(self, type_url: str) -> str:
        path = _AGGREGATED if self.aggregated else _SERVICES[type_url]
        return "/" + path.format("Delta" if self.delta else "Stream")


VARIANTS = tuple(Variant(delta, aggregated) for delta in (True, False) for aggregated in (True, False))


@dataclass(frozen=True)
class Answer:
    """One response. `resources` are name -> what identifies the content; the versions of a state-of-the-world response
    are all `version`."""

    type_url: str
    nonce: str
    version: str
    resources: Mapping[str, bytes]
    versions: Mapping[str, str]
    removed: frozenset[str] = frozenset()

    @property
    def names(self) -> set[str]:
        return set(self.resources)


@dataclass
class _Asked:
    """What a state-of-the-world request has to repeat."""

    names: list[str] = field(default_factory=list)
    version: str = ""
    nonce: str = ""


class Client:
    """Streams as needed: one for all types, or one for each."""

    def __init__(self, channel: grpc.aio.Channel, variant: Variant) -> None:
        self._channel = channel
        self.variant = variant
        self._streams: dict[str, Any] = {}
        self._asked: dict[str, _Asked] = {}

    # What is said

    async def ask(self, type_url: str, *names: str, **more: Any) -> None:
        """Subscribe to these names as well (to none: the old form of the wildcard, or nothing, as the type has it)."""
        if self.variant.delta:
            await self.write(type_url, resource_names_subscribe=names, **more)
            return
        asked = self._asked.setdefault(type_url, _Asked())
        asked.names += [name for name in names if name not in asked.names]
        await self._repeat(type_url)

    def names(self, type_url: str) -> list[str]:
        """What a state-of-the-world client will ask for in its next request."""
        return self._asked[type_url].names

    async def drop(self, type_url: str, *names: str) -> None:
        """Unsubscribe from these names."""
        if self.variant.delta:
            await self.write(type_url, resource_names_unsubscribe=names)
            return
        self._asked[type_url].names = [name for name in self._asked[type_url].names if name not in names]
        await self._repeat(type_url)

    async def ack(self, answer: Answer) -> None:
        """Say that all of it was applied."""
        if self.variant.delta:
            await self.write(answer.type_url, response_nonce=answer.nonce)
            return
        asked = self._asked[answer.type_url]
        asked.version, asked.nonce = answer.version, answer.nonce
        await self._repeat(answer.type_url)

    async def refuse(self, answer: Answer, why: str) -> None:
        """Say that it was not."""
        error = status_pb2.Status(code=13, message=why)
        if self.variant.delta:
            await self.write(answer.type_url, response_nonce=answer.nonce, error_detail=error)
            return
        self._asked[answer.type_url].nonce = answer.nonce
        await self._repeat(answer.type_url, error_detail=error)

    async def _repeat(self, type_url: str, **more: Any) -> None:
        asked = self._asked[type_url]
        await self.write(
            type_url, resource_names=asked.names, version_info=asked.version, response_nonce=asked.nonce, **more
        )

    async def write(self, type_url: str, *, on: str | None = None, **fields: Any) -> None:
        """A request with exactly these fields; `on` is the type whose stream it goes to, if that is another."""
        stream, first = self._stream(on or type_url)
        kind = discovery_pb2.DeltaDiscoveryRequest if self.variant.delta else discovery_pb2.DiscoveryRequest
        request = kind(type_url=type_url, **fields)
        if first:
            # "Basic Protocol Overview": a client may leave the node out of every request but the first.
            request.node.id = NODE
        await stream.write(request)

    def _stream(self, type_url: str) -> tuple[Any, bool]:
        key = "" if self.variant.aggregated else type_url
        if key in self._streams:
            return self._streams[key], False
        response = discovery_pb2.DeltaDiscoveryResponse if self.variant.delta else discovery_pb2.DiscoveryResponse
        method = self._channel.stream_stream(
            self.variant.method(type_url),
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=response.FromString,
        )
        self._streams[key] = method()
        return self._streams[key], True

    # What is heard

    async def read(self, type_url: str) -> Answer:
        """The next response; on an aggregated stream it must be of this type."""
        stream, _ = self._stream(type_url)
        async with asyncio.timeout(PATIENCE):
            response = await stream.read()
        assert response is not grpc.aio.EOF, "the server has ended the stream"
        assert response.type_url == type_url
        assert response.nonce
        answer = _delta(response) if self.variant.delta else _sotw(response)
        assert len(answer.resources) == len(response.resources), "a name twice in one response"
        return answer

    async def failure(self, type_url: str) -> grpc.StatusCode:
        """The status that the server ends the stream with."""
        stream, _ = self._stream(type_url)
        async with asyncio.timeout(PATIENCE):
            return await stream.code()

    async def get(self, type_url: str) -> Answer:
        """The next response, acknowledged."""
        answer = await self.read(type_url)
        await self.ack(answer)
        return answer

    def close(self) -> None:
        for stream in self._streams.values():
            stream.cancel()


def _delta(response: Any) -> Answer:
    return Answer(
        response.type_url,
        response.nonce,
        response.system_version_info,
        {each.name: each.resource.value for each in response.resources},
        {each.name: each.version for each in response.resources},
        frozenset(response.removed_resources),
    )


def _sotw(response: Any) -> Answer:
    kind = MESSAGES[response.type_url]
    resources = {name_of(response.type_url, kind.FromString(each.value)): each.value for each in response.resources}
    return Answer(
        response.type_url,
        response.nonce,
        response.version_info,
        resources,
        dict.fromkeys(resources, response.version_info),
    )


class Target:
    """The server under test: sets what it has, and makes clients of it. `exact`: it is ours, which must send less than
    the protocol would let it, and say the versions that it was given."""

    def __init__(self, stack: AsyncExitStack, adapter: grpc.aio.Channel, xds: grpc.aio.Channel, *, exact: bool) -> None:
        self._stack = stack
        self.exact = exact
        self._numbers = itertools.count(1)
        self._adapter = adapter
        self._xds = xds

    def client(self, variant: Variant) -> Client:
        client = Client(self._xds, variant)
        self._stack.callback(client.close)
        return client

    def fresh_name(self, stem: str) -> str:
        """A name that no resource had in this test."""
        return f"{stem}-{next(self._numbers)}"

    async def set(self, resources: Mapping[str, Iterable[str]], version: str = "1") -> None:
        """These resources (names by type), and no others."""
        packed = [example(type_url, name, version) for type_url, names in resources.items() for name in names]
        await self._call(
            "SetState",
            adapter_pb2.SetStateRequest(node=NODE, version=version, resources=packed),
            adapter_pb2.SetStateResponse,
        )

    async def clear(self) -> None:
        await self._call("ClearState", adapter_pb2.ClearStateRequest(node=NODE), adapter_pb2.ClearStateResponse)

    async def add(self, type_url: str, name: str, version: str = "1") -> None:
        await self._change("AddResource", adapter_pb2.AddResourceResponse, type_url, name, version)

    async def update(self, type_url: str, name: str, version: str) -> None:
        await self._change("UpdateResource", adapter_pb2.UpdateResourceResponse, type_url, name, version)

    async def remove(self, type_url: str, name: str, version: str = "") -> None:
        await self._change("RemoveResource", adapter_pb2.RemoveResourceResponse, type_url, name, version)

    async def _change(self, method: str, response: Any, type_url: str, name: str, version: str) -> None:
        request = adapter_pb2.ResourceRequest(node=NODE, typeUrl=type_url, resourceName=name, version=version)
        await self._call(method, request, response)

    async def _call(self, method: str, request: Any, response: Any) -> None:
        call = self._adapter.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=response.FromString,
        )
        await call(request, timeout=PATIENCE)
