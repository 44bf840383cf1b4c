"""How many requests each version has had, and how many are in flight on each instance, from Envoys' load reports. Pure.

Invariant: the counters only grow. A report's counts are those since the report before, for Envoy's own are taken out
with each (load_stats_reporter_impl.cc, latch); what is in progress is as of the newest report.

Envoy begins to count for a cluster when it is asked about it. So while something drains, and only the clusters
concerned are asked about, what others do is not counted; nor is what happens between a report and the next asking.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from control_plane.resources.names import read_cluster
from registry.plane_traffic import Servable, VersionTotals

Address = tuple[str, int]
"""IP and port, as load reports name an endpoint."""
_SLICE = 200
"""Clusters that are looked at in one go: some 10 µs for each one in use."""


@dataclass(slots=True)
class _Count:
    requests: int = 0
    errors: int = 0


@dataclass(slots=True)
class _Reporter:
    """`progress`: by cluster, requests in progress in all and by endpoint; `clusters`: in the newest report."""

    progress: dict[str, tuple[int, Mapping[Address, int]]] = field(default_factory=dict)
    clusters: int = 0


class LoadTotals:
    """The reports of all Envoys of this control plane. A reporter is one stream, by a number that the caller gives."""

    def __init__(self) -> None:
        self._counts: dict[Servable, _Count] = {}
        self._reporters: dict[int, _Reporter] = {}

    def reported(self, reporter: int, report: Any, *, everything: bool) -> Iterator[None]:
        """A LoadStatsRequest, which names all clusters that were asked about (`everything`: all that there are) and of
        these the endpoints in use. To be stepped through to the end: ten thousand models take tenths of a second, in
        which others may have their turn between two steps."""
        mine = self._reporters.setdefault(reporter, _Reporter())
        clusters = report.cluster_stats
        mine.clusters = len(clusters)
        if everything:
            mine.progress.clear()
        for start in range(0, len(clusters), _SLICE):
            for cluster in clusters[start : start + _SLICE]:
                mine.progress.pop(cluster.cluster_name, None)
                if cluster.upstream_locality_stats:
                    self._count(mine, cluster)
            yield

    def _count(self, mine: _Reporter, cluster: Any) -> None:
        servable = read_cluster(cluster.cluster_name)
        if servable is None:
            return
        count = self._counts.setdefault(servable, _Count())
        progress = 0
        for locality in cluster.upstream_locality_stats:
            bad = locality.total_error_requests
            count.requests += locality.total_successful_requests + bad
            count.errors += bad
            progress += locality.total_requests_in_progress
        if progress:
            mine.progress[cluster.cluster_name] = progress, _by_endpoint(cluster)

    def disconnected(self, reporter: int) -> None:
        """A stream has ended: what this Envoy has in progress is not known any more."""
        self._reporters.pop(reporter, None)

    @property
    def clusters(self) -> tuple[int, int]:
        """How many an Envoy's report names at most, and those of all Envoys together: what they cost."""
        counts = [one.clusters for one in self._reporters.values()]
        return max(counts, default=0), sum(counts)

    def servables(self) -> dict[Servable, VersionTotals]:
        """What was counted so far, and what is in progress."""
        progress: Counter[Servable] = Counter()
        for reporter in self._reporters.values():
            for cluster, (under_way, _) in reporter.progress.items():
                if servable := read_cluster(cluster):
                    progress[servable] += under_way
        none = _Count()
        found = {}
        for servable in self._counts.keys() | progress.keys():
            count = self._counts.get(servable, none)
            found[servable] = VersionTotals(count.requests, count.errors, in_progress=progress[servable])
        return found

    def in_progress(self) -> Counter[Address]:
        """Requests in flight by endpoint."""
        found: Counter[Address] = Counter()
        for reporter in self._reporters.values():
            for _, endpoints in reporter.progress.values():
                found.update(endpoints)
        return found


def _by_endpoint(cluster: Any) -> Counter[Address]:
    found: Counter[Address] = Counter()
    for locality in cluster.upstream_locality_stats:
        for endpoint in locality.upstream_endpoint_stats:
            if endpoint.total_requests_in_progress:
                where = endpoint.address.socket_address
                found[where.address, where.port_value] += endpoint.total_requests_in_progress
    return found
