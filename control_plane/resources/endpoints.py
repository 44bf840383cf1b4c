"""ClusterLoadAssignments: which instances a cluster has now.

Invariant: the bytes depend on the set of endpoints alone, not on the order in which they were learned. Endpoints are
serialised once per version and protocol, and the cluster's name is spliced in front (see clusters.py).
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterable
from functools import lru_cache
from itertools import groupby

from envoy.config.core.v3 import health_check_pb2
from envoy.config.endpoint.v3 import endpoint_pb2

from control_plane.model import Endpoint, Health
from control_plane.resources.clusters import Protocol
from control_plane.resources.resource import CLUSTER_LOAD_ASSIGNMENT, Resource, pack_bytes
from control_plane.resources.wire import string_field

log = logging.getLogger(__name__)

# What is SUSPECT is used like any other, so that a registry that loses its leases takes nobody out of service; if it is
# really gone, connections to it fail and outlier detection leaves it out.
_HEALTH = {
    Health.READY: health_check_pb2.UNKNOWN,
    Health.SUSPECT: health_check_pb2.UNKNOWN,
    Health.DRAINING: health_check_pb2.DRAINING,
}


@lru_cache(maxsize=65536)
def _usable(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    # fe80::1%eth0: the interface is another machine's.
    return getattr(parsed, "scope_id", None) is None


def _port(endpoint: Endpoint, protocol: Protocol) -> int:
    return endpoint.grpc_port if protocol is Protocol.GRPC else endpoint.rest_port


def _usable_endpoints(endpoints: Iterable[Endpoint], protocol: Protocol) -> list[Endpoint]:
    usable = []
    for endpoint in endpoints:
        if not _port(endpoint, protocol):
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
        usable, key=lambda endpoint: (endpoint.zone, endpoint.instance, endpoint.address, _port(endpoint, protocol))
    )


def load_assignment_message(
    name: str, endpoints: Iterable[Endpoint], protocol: Protocol
) -> endpoint_pb2.ClusterLoadAssignment:
    """The assignment of one cluster, as a message. Endpoints without a port for this protocol are left out."""
    assignment = endpoint_pb2.ClusterLoadAssignment(cluster_name=name)
    for zone, members in groupby(_usable_endpoints(endpoints, protocol), key=lambda endpoint: endpoint.zone):
        locality = assignment.endpoints.add()
        if zone:
            locality.locality.zone = zone
        for member in members:
            entry = locality.lb_endpoints.add()
            address = entry.endpoint.address.socket_address
            address.address, address.port_value = member.address, _port(member, protocol)
            entry.endpoint.hostname = member.instance
            entry.health_status = _HEALTH[member.health]
            entry.load_balancing_weight.value = max(1, member.capacity)
    return assignment


def serialised_endpoints(endpoints: Iterable[Endpoint], protocol: Protocol) -> bytes:
    """A serialised assignment without its cluster's name."""
    return bytes(load_assignment_message("", endpoints, protocol).SerializeToString(deterministic=True))


def load_assignment(name: str, serialised: bytes, model: str) -> Resource:
    """One cluster's assignment as a resource, from `serialised_endpoints`."""
    # Field 1 is the cluster's name, and protobuf writes fields in order of their numbers.
    return pack_bytes(CLUSTER_LOAD_ASSIGNMENT, name, string_field(1, name) + serialised, model=model)
