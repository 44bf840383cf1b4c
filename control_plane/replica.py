"""What this replica says in the registry of instances that drain. Pure.

Invariant: a draining instance is listed only after every Envoy of this replica has acknowledged the revision at which
its draining began, and has reported its load since then; so a monitor that reads 0 may stop its server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from control_plane.catalog import Address

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
        self, draining: Mapping[str, frozenset[Address]], converged_revision: int
    ) -> dict[str, frozenset[Address]]:
        """Those of the draining instances that no Envoy sends new requests to, as all of them have acknowledged."""
        return {
            instance: addresses
            for instance, addresses in draining.items()
            if self._since.get(instance, converged_revision + 1) <= converged_revision
        }


def requests_in_flight(acknowledged: Mapping[str, frozenset[Address]], in_flight: InFlight) -> dict[str, int]:
    """Per acknowledged instance, of those for which it is known: what `PlaneRecord.draining` says."""
    counts: dict[str, int] = {}
    for instance, addresses in acknowledged.items():
        reported = [in_flight(*port) for port in frozenset().union(*(address.ports for address in addresses))]
        known = [count for count in reported if count is not None]
        if len(known) == len(reported):
            counts[instance] = sum(known)
    return counts
