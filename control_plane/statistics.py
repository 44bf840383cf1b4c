"""What this replica says of its Envoys' requests: it writes `planes/<replica>/traffic`.

Invariants: it is written as often as Envoys report, or every PAUSE while a model is observed, more seldom if it is
large, and only if it changed; it never grows beyond what etcd takes.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

from control_plane.catalog import Catalog
from control_plane.comparing.results import Results
from control_plane.resources.names import grpc_cluster, rest_cluster
from control_plane.xds.load_reports import LoadReportServer
from registry.leased import LeasedKeys
from registry.plane_traffic import PlaneTraffic, Servable, VersionTotals, added, bounded, encode_plane_traffic

PAUSE = 1.0
_BYTES_PER_SECOND = 50_000
"""etcd keeps each value until it is compacted, once an hour as a rule."""


class Statistics:
    """Gathers what was counted in several places: `loads`, the Envoys' load reports; `compared`, the comparer; and
    `observed`, their access logs."""

    def __init__(
        self,
        catalog: Catalog,
        loads: LoadReportServer,
        compared: Results,
        observed: Callable[[], Mapping[Servable, VersionTotals]] = dict,
        *,
        clock: Callable[[], float] = time.time,
        look: Callable[[Mapping[Servable, VersionTotals]], None] = lambda totals: None,
    ) -> None:
        """`clock`: Unix seconds. `look` gets all totals, each time that they are looked at."""
        self._look = look
        self._catalog, self._loads, self._compared, self._observed = catalog, loads, compared, observed
        self._clock = clock
        self._epoch = uuid.uuid4().hex
        self._since = 0.0

    def record(self) -> PlaneTraffic:
        """As of now; to be called by `publish`, for each tells how long after the one before it is."""
        totals = self._loads.totals.servables()
        for servable, more in self._observed().items():
            totals[servable] = added(totals.get(servable, VersionTotals()), more)
        for (model, version), result in self._compared.by_version.items():
            more = VersionTotals(compared=result.compared, differed=result.differed, difference=result.example)
            totals[model, version] = added(totals.get((model, version), VersionTotals()), more)
        self._look(totals)
        servables = {servable: one for servable, one in totals.items() if one.counted}
        record = PlaneTraffic(self._epoch, round(self._clock(), 1), servables, self._in_flight(), self._since)
        self._since = record.at
        return bounded(record)

    def _in_flight(self) -> Counter[str]:
        by_address = self._loads.totals.in_progress()
        if not by_address:
            return Counter()
        found: Counter[str] = Counter()
        for instance in self._catalog.instances:
            place = self._catalog.address(instance)
            if place is not None and (count := sum(by_address[port] for port in place.ports)):
                found[instance] = count
        return found

    def observe(self) -> bool:
        """Let the load reports of observed models go on through drains; whether there are any."""
        clusters: set[str] = set()
        for name, model in self._catalog.models.items():
            if model.traffic is not None and model.traffic.observe:
                versions = [None, *(version for version, _ in model.versions)]
                clusters.update(spell(name, version) for version in versions for spell in (grpc_cluster, rest_cluster))
        self._loads.observe(clusters)
        return bool(clusters)

    async def publish(self, keys: LeasedKeys, key: str, ready: Callable[[], bool]) -> None:
        """Write it until cancelled, as soon as this replica serves anybody."""
        published: PlaneTraffic | None = None
        waited = size = 0
        while True:
            await asyncio.sleep(PAUSE)
            waited += 1
            pause = PAUSE if self.observe() else self._loads.pause
            if waited * PAUSE < max(pause, size / _BYTES_PER_SECOND):
                continue
            waited = 0
            record = self.record()
            if ready() and (published is None or _told(record) != _told(published)):
                value = encode_plane_traffic(record)
                keys.set({key: value})
                published, size = record, len(value)


def _told(record: PlaneTraffic) -> PlaneTraffic:
    return replace(record, at=0.0, since=0.0)
