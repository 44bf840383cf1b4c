"""What this replica says of itself in the registry. Pure: state in, record out.

Invariant: a draining instance is listed only after every Envoy of this replica has acknowledged the revision at which
its draining began, and has reported its load since; so a monitor that reads 0 may stop its server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from control_plane.catalog import Address
from registry.records import PlaneRecord

InFlight = Callable[[str, int], int | None]
"""Requests in flight at address and port over all Envoys; None while some Envoy has not reported since the drain."""


class DrainLedger:
    """Since which revision each instance drains."""

    def __init__(self) -> None:
        self._since: dict[str, int] = {}

    def update(self, draining: Mapping[str, frozenset[Address]], revision: int) -> None:
        """Note who drains as of a registry revision."""
        self._since = {instance: self._since.get(instance, revision) for instance in draining}

    def record(
        self,
        draining: Mapping[str, frozenset[Address]],
        in_flight: InFlight,
        *,
        converged_revision: int,
        envoys: int,
        version: str,
    ) -> PlaneRecord:
        """The record to publish."""
        counts: dict[str, int] = {}
        for instance, addresses in draining.items():
            since = self._since.get(instance)
            if since is None or since > converged_revision:
                continue
            ports = {(a.address, port) for a in addresses for port in (a.grpc_port, a.rest_port) if port}
            reported = [in_flight(address, port) for address, port in sorted(ports)]
            if None not in reported:
                counts[instance] = sum(count for count in reported if count is not None)
        return PlaneRecord(converged_revision, envoys, version, counts)
