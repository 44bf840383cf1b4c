"""A delta client without a network, and resources that stand for Envoy's: what the tests of the machine talk with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import extension_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.rpc import status_pb2

from control_plane.resources.resource import (
    CLUSTER,
    CLUSTER_LOAD_ASSIGNMENT,
    EXTENSION_CONFIG,
    LISTENER,
    Resource,
    pack,
)
from control_plane.xds.delta import DeltaStream
from control_plane.xds.limits import Limits
from control_plane.xds.stream import Stream
from control_plane.xds.table import ResourceTable

CDS, EDS, LDS, ECDS = CLUSTER, CLUSTER_LOAD_ASSIGNMENT, LISTENER, EXTENSION_CONFIG


def cluster(name: str, version: int = 1) -> Resource:
    message = cluster_pb2.Cluster(name=name)
    message.connect_timeout.seconds = version
    return pack(name, message, model=name)


def endpoints(name: str, *ports: int) -> Resource:
    message = endpoint_pb2.ClusterLoadAssignment(cluster_name=name)
    for port in ports:
        where = message.endpoints.add().lb_endpoints.add().endpoint.address.socket_address
        where.address, where.port_value = "127.0.0.1", port
    return pack(name, message, model=name)


def listener(name: str = "grpc", version: int = 1) -> Resource:
    return pack(name, listener_pb2.Listener(name=name, stat_prefix=str(version)))


def router(*requires: str, name: str = "router", version: int = 1) -> Resource:
    message = extension_pb2.TypedExtensionConfig(name=name)
    message.typed_config.type_url = f"text/{version}/{','.join(requires)}"
    return pack(name, message, requires=frozenset(requires))


def ready_table(*resources: Resource, revision: int = 1) -> ResourceTable:
    table = ResourceTable()
    table.update(resources, (), revision)
    table.mark_ready()
    return table


Response = discovery_pb2.DeltaDiscoveryResponse


def request(
    type_url: str,
    subscribe: Iterable[str] = (),
    unsubscribe: Iterable[str] = (),
    *,
    claimed: Mapping[str, str] | None = None,
    nonce: str = "",
    error: str | None = None,
) -> discovery_pb2.DeltaDiscoveryRequest:
    message = discovery_pb2.DeltaDiscoveryRequest(
        type_url=type_url,
        resource_names_subscribe=list(subscribe),
        resource_names_unsubscribe=list(unsubscribe),
        initial_resource_versions=claimed or {},
        response_nonce=nonce,
    )
    if error is not None:
        message.error_detail.CopyFrom(status_pb2.Status(code=13, message=error))
    return message


def names(response: Response) -> list[str]:
    return sorted(resource.name for resource in response.resources)


@dataclass
class Far(ABC):
    """The far end of one stream, with a clock that the test moves. `sent` holds the responses not answered yet."""

    table: ResourceTable
    stream: Stream
    now: float = 100.0
    sent: list[Any] = field(default_factory=list)
    revision: int = 1

    variant: ClassVar[type[Stream]]
    response: ClassVar[type[Any]]

    @classmethod
    def about(cls, *resources: Resource, table: ResourceTable | None = None, **limits: float) -> Self:
        table = table or ready_table(*resources)
        stream = cls.variant(table, 100.0, Limits(**limits))  # type: ignore[arg-type]
        return cls(table, stream, revision=table.revision)

    @abstractmethod
    def ack(self, response: Any) -> list[Any]: ...

    def read(self) -> list[Any]:
        responses = [self.response.FromString(raw) for raw in self.stream.outgoing(self.now)]
        self.sent += responses
        return responses

    def ack_all(self, *types: str) -> list[Any]:
        """ACK everything (of these types) until the server has nothing more to say; all that it said on the way."""
        said: list[Any] = []
        while waiting := [response for response in self.sent if not types or response.type_url in types]:
            said += self.ack(waiting[0])
        return said

    def change(
        self, *puts: Resource, removes: Iterable[tuple[str, str]] = (), revision: int | None = None
    ) -> list[Any]:
        """Move the table by one revision; what the server writes then."""
        self.revision = revision if revision is not None else self.revision + 1
        self.stream.notice(self.table.update(puts, removes, self.revision), self.now)
        return self.read()

    def wait(self, seconds: float) -> list[Any]:
        self.now += seconds
        return self.read()

    @property
    def converged(self) -> int:
        return self.stream.converged_revision(self.now)


@dataclass
class Talk(Far):
    """The incremental protocol's."""

    variant = DeltaStream
    response = Response

    def ask(self, *args: object, **kwargs: object) -> list[Response]:
        """Send a request; what the server writes then."""
        self.stream.receive(request(*args, **kwargs), self.now)  # type: ignore[arg-type]
        return self.read()

    def ack(self, response: Response, **kwargs: object) -> list[Response]:
        self.sent.remove(response)
        return self.ask(response.type_url, nonce=response.nonce, **kwargs)

    def nack(self, response: Response, error: str = "no good") -> list[Response]:
        return self.ack(response, error=error)


def envoy_like(*resources: Resource, table: ResourceTable | None = None, **limits: float) -> Talk:
    """A talk with all that an Envoy asks for at its start asked, got and ACKed: CDS, EDS, LDS, ECDS."""
    talk = Talk.about(*resources, table=table, **limits)
    talk.ask(CDS)
    if known := sorted(talk.table.entries(EDS)):
        talk.ask(EDS, known)
    talk.ack_all()
    talk.ask(LDS)
    if routers := sorted(talk.table.entries(ECDS)):
        talk.ask(ECDS, routers)
    talk.ack_all()
    assert talk.converged == talk.table.revision
    return talk
