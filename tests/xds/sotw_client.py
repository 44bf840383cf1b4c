"""A state-of-the-world client without a network: what the tests of that machine talk with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import extension_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.rpc import status_pb2

from control_plane.resources.resource import (
    CLUSTER,
    CLUSTER_LOAD_ASSIGNMENT,
    EXTENSION_CONFIG,
    LISTENER,
    ROUTE_CONFIGURATION,
    Resource,
    pack,
)
from control_plane.xds.sotw import SotwStream
from control_plane.xds.table import ResourceTable
from tests.xds.client import Far

Response = discovery_pb2.DiscoveryResponse
RDS = ROUTE_CONFIGURATION
_MESSAGES = {
    CLUSTER: (cluster_pb2.Cluster, "name"),
    CLUSTER_LOAD_ASSIGNMENT: (endpoint_pb2.ClusterLoadAssignment, "cluster_name"),
    LISTENER: (listener_pb2.Listener, "name"),
    ROUTE_CONFIGURATION: (route_pb2.RouteConfiguration, "name"),
    EXTENSION_CONFIG: (extension_pb2.TypedExtensionConfig, "name"),
}


def route(name: str, *requires: str, version: int = 1) -> Resource:
    message = route_pb2.RouteConfiguration(name=name, most_specific_header_mutations_wins=version % 2 == 0)
    message.internal_only_headers.append(",".join(requires))
    return pack(name, message, requires=frozenset(requires))


def request(
    type_url: str,
    names: Iterable[str] = (),
    *,
    version: str = "",
    nonce: str = "",
    error: str | None = None,
) -> discovery_pb2.DiscoveryRequest:
    message = discovery_pb2.DiscoveryRequest(
        type_url=type_url, resource_names=list(names), version_info=version, response_nonce=nonce
    )
    if error is not None:
        message.error_detail.CopyFrom(status_pb2.Status(code=13, message=error))
    return message


def held(response: Response) -> dict[str, str]:
    """Name -> version of the resources of a response."""
    found: dict[str, str] = {}
    for body in response.resources:
        message_type, field_name = _MESSAGES[response.type_url]
        message = message_type()
        assert body.Unpack(message)
        name = getattr(message, field_name)
        assert name not in found, "a name twice in one response"
        found[name] = pack(name, message).version
    return found


def names(response: Response) -> list[str]:
    return sorted(held(response))


@dataclass
class Known:
    """What a client would say of a type in its next request."""

    names: list[str] = field(default_factory=list)
    version: str = ""
    nonce: str = ""


@dataclass
class SotwTalk(Far):
    """The state-of-the-world protocol's, which keeps in mind what a client has to say again."""

    known: dict[str, Known] = field(default_factory=dict)

    variant = SotwStream
    response = Response

    def ask(
        self, type_url: str, names_wanted: Iterable[str] | None = None, *, version: str = "", nonce: str | None = None
    ) -> list[Response]:
        """Ask for these names (None: the same as before) with what a client knows then; what the server writes."""
        known = self.known.setdefault(type_url, Known(version=version))
        if names_wanted is not None:
            known.names = list(names_wanted)
        asked = request(type_url, known.names, version=known.version, nonce=known.nonce if nonce is None else nonce)
        self.stream.receive(asked, self.now)
        return self.read()

    def answer(self, response: Response, error: str | None = None) -> list[Response]:
        self.sent.remove(response)
        known = self.known.setdefault(response.type_url, Known())
        known.nonce = response.nonce
        if error is None:
            known.version = response.version_info
        asked = request(response.type_url, known.names, version=known.version, nonce=known.nonce, error=error)
        self.stream.receive(asked, self.now)
        return self.read()

    def ack(self, response: Response) -> list[Response]:
        return self.answer(response)

    def nack(self, response: Response, error: str = "no good") -> list[Response]:
        return self.answer(response, error)


def envoy_like(*resources: Resource, table: ResourceTable | None = None, **limits: float) -> SotwTalk:
    """A talk with all that an Envoy asks for at its start asked, got and ACKed: CDS, EDS, LDS, ECDS."""
    talk = SotwTalk.about(*resources, table=table, **limits)
    talk.ask(CLUSTER)
    if assignments := sorted(talk.table.entries(CLUSTER_LOAD_ASSIGNMENT)):
        talk.ask(CLUSTER_LOAD_ASSIGNMENT, assignments)
    talk.ack_all()
    talk.ask(LISTENER)
    if routers := sorted(talk.table.entries(EXTENSION_CONFIG)):
        talk.ask(EXTENSION_CONFIG, routers)
    talk.ack_all()
    assert talk.converged == talk.table.revision
    return talk
