"""What this replica says in the registry of instances that drain.

Invariant: a draining instance is listed only after every Envoy and gRPC client of this replica has acknowledged the
revision at which its draining began, and has reported its load since then; so a monitor that reads 0 may stop its
server. What is quarantined counts as acknowledged, but not here: a client that has not taken "this endpoint drains"
sends it requests.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from envoy.config.core.v3 import health_check_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from google.protobuf import any_pb2

from control_plane.catalog import Catalog
from control_plane.drains import Drain, Place, Places, draining_keys, draining_places
from control_plane.resources.resource import CLUSTER_LOAD_ASSIGNMENT
from control_plane.xds.load_reports import LoadReportServer
from control_plane.xds.server import XdsServer
from control_plane.xds.table import ResourceTable

_RECORD_PAUSE, _DRAIN_PAUSE = 0.02, 0.002
_LONGEST_PAUSE = 1.0
_LONG = 1.0
"""Seconds after which those are named for whom a drain waits."""
_MOST_NAMED = 5


def pause_after(spent: float, *, draining: bool = False) -> float:
    """Seconds until this replica looks at all of its streams again, if the last look took `spent`.

    A burst of changes becomes one write of its record; the pause is far below what a drain's user would notice, and
    shorter while somebody waits for this record. And at most a tenth of the time goes into looking: with a thousand
    streams the rest is needed for telling them.
    """
    return min(_LONGEST_PAUSE, max(_DRAIN_PAUSE if draining else _RECORD_PAUSE, 9 * spent))


class DrainLedger:
    """Since which revision each drain goes on."""

    def __init__(self) -> None:
        self._since: dict[Drain, int] = {}
        self._keys: dict[Drain, frozenset[Hashable]] = {}
        self._acknowledged: dict[Drain, int] = {}

    def update(self, drains: Mapping[Drain, frozenset[Hashable]], revision: int) -> None:
        """Note what drains, and of what each drain consists, as of a registry revision."""
        since = {}
        for drain, keys in drains.items():
            # More of it drains than before: a new drain, for until now the rest was sent requests.
            known = self._since.get(drain, revision) if keys <= self._keys.get(drain, keys) else revision
            # The least: a wiped etcd counts from the beginning again, and the old number would never be reached.
            since[drain] = min(known, revision)
        self._since, self._keys = since, dict(drains)

    def acknowledged(
        self, drains: Places, converged_revision: int, held_back: frozenset[Place] = frozenset()
    ) -> dict[Drain, frozenset[Place]]:
        """Those of the drains that no client sends new requests to, as all of them have acknowledged.

        Once it is so, it stays so: who connects later is told of the drain with the rest, and while it has not
        answered yet, `converged_revision` is low. With gRPC clients that come and go it would be for ever.
        `held_back`: the places of which clients have not been told, see `held_back_drains`.
        """
        self._acknowledged = {
            drain: since
            for drain, since in self._since.items()
            if drain in drains
            and (since <= converged_revision or self._acknowledged.get(drain) == since)
            and not (held_back and drains[drain] & held_back)
        }
        return {drain: drains[drain] for drain in self._acknowledged}

    def since(self, drain: Drain) -> int | None:
        """The revision that a drain is to be acknowledged at; None once it was, or if there is no such drain."""
        return None if drain in self._acknowledged else self._since.get(drain)


def held_back_drains(tables: Iterable[ResourceTable], models: Container[str]) -> frozenset[Place]:
    """What the quarantined load assignments of these models say that it drains. Costs what is quarantined."""
    places: set[Place] = set()
    for table in tables:
        for (type_url, name), record in table.quarantined.items():
            if type_url != CLUSTER_LOAD_ASSIGNMENT or record.model not in models:
                continue
            resource = table.offered(type_url, name)
            assert resource is not None
            places |= _draining_places(resource.body)
    return frozenset(places)


def _draining_places(body: bytes) -> set[Place]:
    assignment = endpoint_pb2.ClusterLoadAssignment.FromString(any_pb2.Any.FromString(body).value)
    addresses = [
        entry.endpoint.address.socket_address
        for locality in assignment.endpoints
        for entry in locality.lb_endpoints
        if entry.health_status == health_check_pb2.DRAINING
    ]
    return {(assignment.cluster_name, address.address, address.port_value) for address in addresses}


@dataclass(frozen=True, slots=True)
class DrainReport:
    """What `PlaneRecord` says of drains, in the fields of the same names."""

    draining: Mapping[str, int] = field(default_factory=dict)
    servables: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    behind: tuple[str, ...] = ()


class Drains:
    """What drains in a catalog, and how far it is: asked of the streams (`xds`) and of the load reports."""

    def __init__(self, catalog: Catalog, xds: XdsServer, loads: LoadReportServer) -> None:
        self._catalog = catalog
        self._xds = xds
        self._loads = loads
        self._ledger = DrainLedger()
        self._drains: dict[Drain, frozenset[Place]] = {}
        self._first_seen: dict[Drain, float] = {}

    @property
    def going_on(self) -> bool:
        """Whether anything drains."""
        return bool(self._drains)

    def catalog_changed(self) -> None:
        """To be called after each step of the catalog and before the streams are told of it."""
        self._drains = draining_places(self._catalog)
        self._ledger.update(draining_keys(self._catalog, self._drains), self._catalog.revision)
        self._loads.ask_about({cluster for places in self._drains.values() for cluster, _, _ in places})

    def look(self, converged_revision: int) -> None:
        """Let what is in flight be counted wherever all clients have acknowledged that it drains."""
        models = {model for model, _ in self._catalog.draining_versions} if self._drains else ()
        held_back = held_back_drains((view.table for view in self._xds.views), models)
        self._loads.set_draining(self._ledger.acknowledged(self._drains, converged_revision, held_back))

    def report(self, converged_revision: int, now: float) -> DrainReport:
        """How far every drain is; `now` in monotonic seconds."""
        self.look(converged_revision)
        draining: dict[str, int] = {}
        servables: dict[str, dict[str, int]] = {}
        slow: list[Drain] = []
        self._first_seen = {drain: self._first_seen.get(drain, now) for drain in self._drains}
        for drain in self._drains:
            count = self._loads.in_flight(drain)
            if count is None:
                if now - self._first_seen[drain] >= _LONG:
                    slow.append(drain)
            elif isinstance(drain, str):
                draining[drain] = count
            else:
                servables.setdefault(drain.instance, {})[f"{drain.model}@{drain.version}"] = count
        return DrainReport(draining, servables, self._behind(slow))

    def _behind(self, slow: Iterable[Drain]) -> tuple[str, ...]:
        names: set[str] = set()
        for drain in slow:
            since = self._ledger.since(drain)
            names.update(self._loads.silent(drain) if since is None else self._xds.behind(since))
        return tuple(sorted(names)[:_MOST_NAMED])
