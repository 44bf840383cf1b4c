"""ClusterLoadAssignments: which instances a cluster has now.

Invariant: the bytes depend on the set of endpoints alone, not on the order in which they were learned. Endpoints are
serialised one by one, once for all the models of their instance, and an assignment is put together from these bytes
and its cluster's name (see clusters.py); it is byte for byte what protobuf serialises, which a test holds it to.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import groupby
from operator import attrgetter

from envoy.config.core.v3 import base_pb2, health_check_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2

from control_plane.model import Endpoint, Health
from control_plane.resources.clusters import Protocol
from control_plane.resources.resource import CLUSTER_LOAD_ASSIGNMENT, Resource, pack_bytes
from control_plane.resources.wire import bytes_field, string_field

log = logging.getLogger(__name__)

# What is SUSPECT is used like any other, so that a registry that loses its leases takes nobody out of service and sends
# Envoy nothing; if it is really gone, connections to it fail and outlier detection leaves it out, and soon it is
# UNANSWERED. Not Envoy's own health checks: to begin or end one replaces the endpoint (docs/guard.md).
HEALTH = {
    Health.READY: health_check_pb2.UNKNOWN,
    Health.SUSPECT: health_check_pb2.UNKNOWN,
    Health.UNANSWERED: health_check_pb2.UNHEALTHY,
    Health.FAILING: health_check_pb2.UNKNOWN,
    Health.DRAINING: health_check_pb2.DRAINING,
}


# Nothing new for these, as long as there is another.
UNUSED = (Health.DRAINING, Health.UNANSWERED)

# endpoint_components.proto: weights of a locality may not sum up to more; an assignment whose weights do is refused.
_MOST_WEIGHT = 2**32 - 1
_FAR_MORE = 1_000_000

_by_zone = attrgetter("zone")


@lru_cache(maxsize=65536)
def _usable(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    # fe80::1%eth0: the interface is another machine's.
    return getattr(parsed, "scope_id", None) is None


def port_of(endpoint: Endpoint, protocol: Protocol) -> int:
    """Where this endpoint is asked in this protocol; 0: nowhere."""
    return endpoint.grpc_port if protocol is Protocol.GRPC else endpoint.rest_port


def usable_endpoints(endpoints: Iterable[Endpoint], protocol: Protocol) -> list[Endpoint]:
    """Those that a client can be told of, in an order that depends on themselves alone."""
    usable = []
    for endpoint in endpoints:
        if not port_of(endpoint, protocol):
            continue
        if not _usable(endpoint.address):
            # Envoy would refuse the whole assignment, and with it the model's good instances.
            log.warning(
                "instance %s left out: its address %r is no IP address; give its monitor one",
                endpoint.instance,
                endpoint.address,
            )
            continue
        usable.append(endpoint)
    return sorted(
        usable, key=lambda endpoint: (endpoint.zone, endpoint.instance, endpoint.address, port_of(endpoint, protocol))
    )


@lru_cache(maxsize=65536)
def _entry(instance: str, address: str, port: int, health: Health, weight: int) -> bytes:
    """One of a locality's endpoints (endpoint_components.proto, LocalityLbEndpoints: lb_endpoints = 2)."""
    entry = endpoint_components_pb2.LbEndpoint(health_status=HEALTH[health])
    entry.endpoint.hostname = instance
    where = entry.endpoint.address.socket_address
    where.address, where.port_value = address, port
    entry.load_balancing_weight.value = weight
    return bytes_field(2, entry.SerializeToString(deterministic=True))


@lru_cache(maxsize=1024)
def _zone(name: str) -> bytes:
    """A locality's name (LocalityLbEndpoints: locality = 1); nothing for none."""
    return bytes_field(1, base_pb2.Locality(zone=name).SerializeToString(deterministic=True))


def _weights(endpoints: Iterable[Endpoint]) -> Callable[[Endpoint], int]:
    """Their capacities; with some that are listed but not to be used, so many times these that an Envoy which has
    ejected all others chooses among the others still (clusters.py, panic): it chooses from all by weight then."""
    endpoints = list(endpoints)
    used = [max(1, endpoint.capacity) for endpoint in endpoints if endpoint.health not in UNUSED]
    if len(used) in (0, len(endpoints)):
        return lambda endpoint: max(1, endpoint.capacity)
    scale = max(1, min(_FAR_MORE, (_MOST_WEIGHT - len(endpoints)) // sum(used)))
    return lambda endpoint: 1 if endpoint.health in UNUSED else max(1, endpoint.capacity) * scale


def _refuse_all() -> bytes:
    policy = endpoint_pb2.ClusterLoadAssignment.Policy()
    drop = policy.drop_overloads.add(category="drained")
    drop.drop_percentage.numerator = 100  # of 100, the default
    return bytes_field(4, policy.SerializeToString(deterministic=True))  # endpoint.proto: policy = 4


_REFUSE_ALL = _refuse_all()


# The models of an instance mostly have the same other instances too: one set of endpoints for a hundred models.
@lru_cache(maxsize=4096)
def serialised_endpoints(endpoints: tuple[Endpoint, ...], protocol: Protocol) -> bytes:
    """A serialised assignment without its cluster's name. Endpoints without a port for this protocol are left out.

    If all that are listed only drain, Envoy is told to refuse every request. What drains is about to be stopped: better
    UNAVAILABLE, which a client may retry, than an inference cut off.
    """
    listed = usable_endpoints(endpoints, protocol)
    weight = _weights(listed)
    localities = []
    for zone, members in groupby(listed, key=_by_zone):
        entries = (_entry(m.instance, m.address, port_of(m, protocol), m.health, weight(m)) for m in members)
        # endpoint.proto, ClusterLoadAssignment: endpoints = 2
        localities.append(bytes_field(2, _zone(zone) + b"".join(entries)))
    if listed and all(endpoint.health in UNUSED for endpoint in listed):
        localities.append(_REFUSE_ALL)
    return b"".join(localities)


def load_assignment(name: str, serialised: bytes, model: str) -> Resource:
    """One cluster's assignment as a resource, from `serialised_endpoints`."""
    # Field 1 is the cluster's name, and protobuf writes fields in order of their numbers.
    return pack_bytes(CLUSTER_LOAD_ASSIGNMENT, name, string_field(1, name) + serialised, model=model)
