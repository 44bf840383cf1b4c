"""What on one stream has to wait now, given what the client has said of itself so far; order.py keeps it.

Invariant: nothing waits for what this client will not ask for, nor beyond its deadline.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from control_plane.resources.resource import CLUSTER, CLUSTER_LOAD_ASSIGNMENT, LISTENER, ROUTE_CONFIGURATION
from control_plane.xds.limits import Limits
from control_plane.xds.order import Order
from control_plane.xds.subscription import UNKNOWN, Subscription, Unknown
from control_plane.xds.table import ResourceTable

PAIR = frozenset({CLUSTER, CLUSTER_LOAD_ASSIGNMENT})
"""The types that wait for nothing."""

_AFTER_EVERYTHING = frozenset({LISTENER, ROUTE_CONFIGURATION})


class Gates:
    """Decides for one stream."""

    def __init__(
        self,
        table: ResourceTable,
        subscriptions: Mapping[str, Subscription],
        order: Order,
        limits: Limits,
        only_type: str | None,
    ) -> None:
        self._table = table
        self._subscriptions = subscriptions
        self._order = order
        self._limits = limits
        self._only_type = only_type
        self._suspects: list[tuple[float, set[str]]] = []
        self._clusters_expected_by: float | None = None
        self._endpoints_taken: set[str] = set()
        self._away_until: float | None = None
        self._stays_away = False

    def next_deadline(self) -> float | None:
        """When to call `give_up` and `endpoints_again`; None: no need."""
        times = (self._suspects[0][0] if self._suspects else None, self._clusters_expected_by, self._away_until)
        return min((time for time in times if time is not None), default=None)

    def suspect(self, clusters: Iterable[str], now: float) -> None:
        """The client has refused these by themselves, or may have."""
        order = self._order
        warming = {name for name in clusters if name in order.warming or name in order.leaving}
        self._suspects.append((now + self._limits.suspect_seconds, warming))

    def give_up(self, now: float) -> None:
        """Envoy asks at once for the EDS of a cluster that it takes. What was refused, and it has not asked for in a
        while, it does not have: nothing is to wait for that. Nor for clusters that a client never asks for."""
        if self._away_until is not None and now >= self._away_until:
            self._away_until, self._stays_away = None, True
        endpoints = self._subscriptions.get(CLUSTER_LOAD_ASSIGNMENT)
        while self._suspects and self._suspects[0][0] <= now:
            for name in self._suspects.pop(0)[1]:
                if endpoints is None or not endpoints.tracks(name):
                    self._order.cluster_gone(name)

    def expect_clusters(self, now: float) -> None:
        """envoy#36951: an Envoy that reconnects while a cluster warms asks for EDS first, and for CDS once no cluster
        warms. What it lacks it asks for, and it comes back to CDS as soon as it has that; then nothing that it has is
        to be sent again. Only if it doesn't come does it warm a changed cluster, which needs EDS again, changed or not.
        """
        self._clusters_expected_by = now + self._limits.suspect_seconds

    def endpoints_acked(self, names: Iterable[str]) -> None:
        """The client has taken endpoints of these: they don't warm, since no clusters were sent after that."""
        if self._clusters_expected_by is not None:
            self._endpoints_taken.update(names)

    def is_away_from_clusters(self, now: float) -> bool:
        """Whether it is such an Envoy that hasn't come back to CDS yet: it may lack any cluster, or hold one that is
        gone. One that doesn't come isn't: it has clusters of its own, and all that it is to have of us is EDS."""
        endpoints = self._subscriptions.get(CLUSTER_LOAD_ASSIGNMENT)
        if endpoints is None or CLUSTER in self._subscriptions or self._only_type is not None:
            return False
        if self._stays_away or (self._away_until is not None and now >= self._away_until):
            return False
        return bool(endpoints.names)

    def endpoints_again(self, now: float) -> Iterator[tuple[str, str | Unknown]]:
        """The names of which EDS is to be sent again for that, and what the client holds of each."""
        if self._clusters_expected_by is None:
            return
        if CLUSTER in self._subscriptions:
            self._clusters_expected_by = None
            self._endpoints_taken.clear()
        elif now >= self._clusters_expected_by:
            endpoints = self._subscriptions[CLUSTER_LOAD_ASSIGNMENT]
            if any(item.on_its_way for item in endpoints.items.values()):
                # It is still about to get what it lacks.
                self.expect_clusters(now)
                return
            self._clusters_expected_by = None
            taken, self._endpoints_taken = self._endpoints_taken, set()
            clusters = self._table.entries(CLUSTER)
            for name, entry in self._table.entries(CLUSTER_LOAD_ASSIGNMENT).items():
                # A client without clusters of ours warms none of them.
                if endpoints.tracks(name) and name in clusters and name not in taken:
                    yield name, entry.resource.version
            for type_url, name in self._table.quarantined:
                # "Removed" ends the warming too, and Envoy keeps the endpoints that it has.
                lacking = type_url == CLUSTER_LOAD_ASSIGNMENT and name not in taken
                if lacking and endpoints.tracks(name) and self._table.withheld(type_url, name):
                    yield name, UNKNOWN

    def let_wait(self, now: float, sequence: int) -> None:
        """Settle for each resource that is due which clusters it waits for. `sequence`: the last response sent."""
        for key in self._order.outdated():
            current = self._table.get(*key)
            if current is None or current.version != self._order.waiting[key].resource.version:
                del self._order.waiting[key]
        clusters = self._subscriptions.get(CLUSTER)
        endpoints = self._subscriptions.get(CLUSTER_LOAD_ASSIGNMENT)
        if clusters is not None:
            self._away_until = None
        elif endpoints is not None and self._away_until is None and not self._stays_away:
            self._away_until = now + self._limits.away_seconds
        # gRFC A27: a gRPC client names its listeners, and asks for a cluster only when it has what names it.
        listeners = self._subscriptions.get(LISTENER)
        follows = self._only_type is not None or (listeners is not None and not listeners.wildcard)
        blind = not follows and clusters is not None and endpoints is None and self._needs_endpoints(clusters)
        # envoy#36951 again: it withholds its CDS subscription, and lacks what was added since it had one. (Without EDS
        # either, it is one that asks for clusters on demand and has had no demand yet.)
        paused = not follows and clusters is None and endpoints is not None
        for type_url, subscription in self._subscriptions.items():
            if type_url in PAIR:
                continue
            for name in subscription.puts:
                resource = self._table.get(type_url, name)
                if resource is None or (type_url, name) in self._order.waiting:
                    continue
                everything = type_url in _AFTER_EVERYTHING and not follows
                deadline = subscription.items[name].due_at + self._limits.gate_seconds
                unknown = paused or blind if resource.requires else blind and everything
                if unknown and now < deadline:
                    # It has not said yet what clusters or EDS it holds: after a reconnect that may be old.
                    continue
                self._order.wait(resource, deadline, endpoints, sequence, everything=everything)

    def _needs_endpoints(self, clusters: Subscription) -> bool:
        """Whether a client with these clusters is to ask for EDS; one that names only unknown clusters is not."""
        assignments = self._table.entries(CLUSTER_LOAD_ASSIGNMENT)
        return bool(assignments) if clusters.wildcard else any(name in assignments for name in clusters.names)
