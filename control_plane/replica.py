"""What this replica says in the registry of instances that drain. Pure.

Invariant: a draining instance is listed only after every Envoy of this replica has acknowledged the revision at which
its draining began, and has reported its load since then; so a monitor that reads 0 may stop its server. What is
quarantined counts as acknowledged, but not here: an Envoy that has not taken "this endpoint drains" sends it requests.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping

from envoy.config.core.v3 import health_check_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from google.protobuf import any_pb2

from control_plane.catalog import Address
from control_plane.resources.resource import CLUSTER_LOAD_ASSIGNMENT
from control_plane.xds.table import ResourceTable

Port = tuple[str, int]
"""An endpoint's address and TCP port."""

InFlight = Callable[[str, int], int | None]
"""Requests in flight at address and port over all Envoys; None while some Envoy has not reported since the drain was
acknowledged."""


class DrainLedger:
    """Since which revision each instance drains."""

    def __init__(self) -> None:
        self._since: dict[str, int] = {}

    def update(self, draining: Mapping[str, frozenset[Address]], revision: int) -> None:
        """Note who drains as of a registry revision."""
        # The least: a wiped etcd counts from the beginning again, and the old number would never be reached.
        self._since = {instance: min(self._since.get(instance, revision), revision) for instance in draining}

    def acknowledged(
        self,
        draining: Mapping[str, frozenset[Address]],
        converged_revision: int,
        held_back: frozenset[Port] = frozenset(),
    ) -> dict[str, frozenset[Address]]:
        """Those of the draining instances that no Envoy sends new requests to, as all of them have acknowledged.

        `held_back`: the ports of which Envoys have not been told, see `held_back_drains`.
        """
        return {
            instance: addresses
            for instance, addresses in draining.items()
            if self._since.get(instance, converged_revision + 1) <= converged_revision
            and not any(address.ports & held_back for address in addresses)
        }


def held_back_drains(tables: Iterable[ResourceTable], models: Container[str]) -> frozenset[Port]:
    """What the quarantined load assignments of these models say that it drains. Costs what is quarantined."""
    ports: set[Port] = set()
    for table in tables:
        for (type_url, name), record in table.quarantined.items():
            if type_url != CLUSTER_LOAD_ASSIGNMENT or record.model not in models:
                continue
            resource = table.offered(type_url, name)
            assert resource is not None
            ports |= _draining_ports(resource.body)
    return frozenset(ports)


def _draining_ports(body: bytes) -> set[Port]:
    assignment = endpoint_pb2.ClusterLoadAssignment.FromString(any_pb2.Any.FromString(body).value)
    addresses = [
        entry.endpoint.address.socket_address
        for locality in assignment.endpoints
        for entry in locality.lb_endpoints
        if entry.health_status == health_check_pb2.DRAINING
    ]
    return {(address.address, address.port_value) for address in addresses}


def requests_in_flight(acknowledged: Mapping[str, frozenset[Address]], in_flight: InFlight) -> dict[str, int]:
    """Per acknowledged instance, of those for which it is known: what `PlaneRecord.draining` says."""
    counts: dict[str, int] = {}
    for instance, addresses in acknowledged.items():
        reported = [in_flight(*port) for port in frozenset().union(*(address.ports for address in addresses))]
        known = [count for count in reported if count is not None]
        if len(known) == len(reported):
            counts[instance] = sum(known)
    return counts
