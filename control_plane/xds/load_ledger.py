"""How many requests are in flight at endpoints that drain, from Envoys' load reports. Pure.

Invariant: a number is given only when every Envoy that counts has reported twice since it was told to (`drain`, which
comes after all of them have ACKed the drain), or since it connected. Twice, because the report at hand may have been
made before, and because Envoy's workers apply an EDS update a moment after its main thread has ACKed it. What a report
leaves out is idle: Envoy names only what is in use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

HostPort = tuple[str, int]
REPORTS = 2


def requests_in_progress(report: Any) -> Counter[HostPort]:
    """Endpoint -> requests in progress, over all clusters of a LoadStatsRequest with endpoint granularity."""
    counts: Counter[HostPort] = Counter()
    for cluster in report.cluster_stats:
        for locality in cluster.upstream_locality_stats:
            for endpoint in locality.upstream_endpoint_stats:
                where = endpoint.address.socket_address
                counts[where.address, where.port_value] += endpoint.total_requests_in_progress
    return counts


@dataclass(slots=True)
class _Reporter:
    node: str
    reports: int = 0
    in_progress: Mapping[HostPort, int] = field(default_factory=dict)
    since: dict[HostPort, int] = field(default_factory=dict)


class LoadLedger:
    """The reports of all Envoys. A reporter is one stream, by a number that the caller gives out."""

    def __init__(self) -> None:
        self._draining: frozenset[HostPort] = frozenset()
        self._reporters: dict[int, _Reporter] = {}

    @property
    def draining(self) -> frozenset[HostPort]:
        """The endpoints that are looked at."""
        return self._draining

    def connected(self, reporter: int, node: str) -> None:
        """A stream has begun; `node` is the Envoy's node id."""
        self._reporters[reporter] = _Reporter(node, since=dict.fromkeys(self._draining, 0))

    def disconnected(self, reporter: int) -> None:
        """A stream has ended."""
        self._reporters.pop(reporter, None)

    def strays(self, nodes: Iterable[str]) -> frozenset[int]:
        """The reporters that no configuration stream belongs to, if those are of the Envoys `nodes`, one entry for
        each: of several with one name the newest."""
        free = Counter(nodes)
        strays = set()
        for number, reporter in self._reporters.items():
            if free[reporter.node] > 0:
                free[reporter.node] -= 1
            else:
                strays.add(number)
        return frozenset(strays)

    def drain(self, endpoints: Iterable[HostPort]) -> bool:
        """Every Envoy knows that these endpoints drain, and no others; whether that is new."""
        draining = frozenset(endpoints)
        if draining == self._draining:
            return False
        for reporter in self._reporters.values():
            reporter.since = {
                endpoint: reporter.since[endpoint] if endpoint in self._draining else reporter.reports
                for endpoint in draining
            }
        self._draining = draining
        return True

    def reported(self, reporter: int, report: Any) -> None:
        """A report came in; it replaces what this Envoy said before."""
        entry = self._reporters[reporter]
        entry.reports += 1
        counts = requests_in_progress(report)
        entry.in_progress = {endpoint: counts[endpoint] for endpoint in self._draining if counts[endpoint]}

    def in_flight(self, endpoint: HostPort, nodes: Collection[str] = ()) -> int | None:
        """Requests in flight at a draining endpoint over all Envoys; None while it can't be known.

        `nodes` names the Envoys that must have reported, one entry for each, so that one without load reports, or
        between two streams, is not taken for idle.
        """
        if endpoint not in self._draining:
            return None
        if Counter(nodes) - Counter(reporter.node for reporter in self._reporters.values()):
            return None
        total = 0
        for reporter in self._reporters.values():
            if reporter.reports < reporter.since[endpoint] + REPORTS:
                return None
            total += reporter.in_progress.get(endpoint, 0)
        return total
