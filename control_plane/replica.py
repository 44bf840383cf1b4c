"""What this replica says in the registry of instances that drain. Pure.

Invariant: a draining instance is listed only after every Envoy and gRPC client of this replica has acknowledged the
revision at which its draining began, and has reported its load since then; so a monitor that reads 0 may stop its
server. What is quarantined counts as acknowledged, but not here: a client that has not taken "this endpoint drains"
sends it requests.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Iterable, Mapping

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

_RECORD_PAUSE = 0.02
_LONGEST_PAUSE = 1.0


def pause_after(spent: float) -> float:
    """Seconds until this replica looks at all of its streams again, if the last look took `spent`.

    A burst of changes becomes one write of its record; the pause is far below what a drain's user would notice. And at
    most a tenth of the time goes into looking: with a thousand streams the rest is needed for telling them.
    """
    return min(_LONGEST_PAUSE, max(_RECORD_PAUSE, 9 * spent))


class DrainLedger:
    """Since which revision each instance drains."""

    def __init__(self) -> None:
        self._since: dict[str, int] = {}
        self._keys: dict[str, frozenset[Hashable]] = {}
        self._acknowledged: dict[str, int] = {}

    def update(self, draining: Mapping[str, frozenset[Hashable]], revision: int) -> None:
        """Note who drains, and what of it, as of a registry revision."""
        since = {}
        for instance, keys in draining.items():
            # More of it drains than before: a new drain, for until now the rest was sent requests.
            known = self._since.get(instance, revision) if keys <= self._keys.get(instance, keys) else revision
            # The least: a wiped etcd counts from the beginning again, and the old number would never be reached.
            since[instance] = min(known, revision)
        self._since, self._keys = since, dict(draining)

    def acknowledged(
        self,
        draining: Mapping[str, frozenset[Address]],
        converged_revision: int,
        held_back: frozenset[Port] = frozenset(),
    ) -> dict[str, frozenset[Address]]:
        """Those of the draining instances that no client sends new requests to, as all of them have acknowledged.

        Once it is so, it stays so: who connects later is told of the drain with the rest, and while it has not
        answered yet, `converged_revision` is low. With gRPC clients that come and go it would be for ever.
        `held_back`: the ports of which clients have not been told, see `held_back_drains`.
        """
        self._acknowledged = {
            instance: since
            for instance, since in self._since.items()
            if instance in draining
            and (since <= converged_revision or self._acknowledged.get(instance) == since)
            and not any(address.ports & held_back for address in draining[instance])
        }
        return {instance: draining[instance] for instance in self._acknowledged}


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
