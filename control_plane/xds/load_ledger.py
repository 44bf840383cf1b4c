"""How many requests are in flight where something drains, from Envoys' load reports. Pure.

A place is an endpoint in a cluster: of one instance one version may drain while it goes on with others.

Invariant: a number is given only when every Envoy that counts has reported REPORTS times since it was told to (`drain`,
which comes after all of them have ACKed the drain), or since it connected. Not once, because the report at hand may
have been made before, and because Envoy's workers apply an EDS update a moment after its main thread has ACKed it: no
acknowledgement tells when, so the reports after the first are that moment. (With two reports 20 ms apart, one request
was seen to come too late, on a machine with ten times as much to do as it has cores.) What a report leaves out is idle:
Envoy names only what is in use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from control_plane.drains import Drain, Place, Places

REPORTS = 3


def requests_in_progress(report: Any) -> Counter[Place]:
    """Place -> requests in progress, of a LoadStatsRequest with endpoint granularity; nothing of what is idle."""
    counts: Counter[Place] = Counter()
    for cluster in report.cluster_stats:
        for locality in cluster.upstream_locality_stats:
            for endpoint in locality.upstream_endpoint_stats:
                if endpoint.total_requests_in_progress:
                    where = endpoint.address.socket_address
                    place = cluster.cluster_name, where.address, where.port_value
                    counts[place] += endpoint.total_requests_in_progress
    return counts


def anything_new(known: Places, drains: Places, drain: Drain) -> bool:
    """Whether a drain is one that was not looked at before in all of its places."""
    return not drains[drain] <= known.get(drain, frozenset())


@dataclass(slots=True)
class _Reporter:
    node: str
    reports: int = 0
    in_progress: Mapping[Place, int] = field(default_factory=dict)
    since: dict[Drain, int] = field(default_factory=dict)


class LoadLedger:
    """The reports of all Envoys. A reporter is one stream, by a number that the caller gives out."""

    def __init__(self) -> None:
        self._drains: Places = {}
        self._places: frozenset[Place] = frozenset()
        self._reporters: dict[int, _Reporter] = {}

    def connected(self, reporter: int, node: str) -> None:
        """A stream has begun; `node` is the Envoy's node id."""
        self._reporters[reporter] = _Reporter(node, since=dict.fromkeys(self._drains, 0))

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

    def drain(self, drains: Places) -> bool:
        """Every Envoy knows of these drains, and of no others; whether that is new."""
        if drains == self._drains:
            return False
        again = {drain for drain in drains if not anything_new(self._drains, drains, drain)}
        for reporter in self._reporters.values():
            reporter.since = {drain: reporter.since[drain] if drain in again else reporter.reports for drain in drains}
        self._drains, self._places = dict(drains), frozenset(chain.from_iterable(drains.values()))
        return True

    def reported(self, reporter: int, report: Any) -> None:
        """A report came in; it replaces what this Envoy said before."""
        entry = self._reporters[reporter]
        entry.reports += 1
        counts = requests_in_progress(report)
        entry.in_progress = {place: count for place, count in counts.items() if place in self._places}

    def in_flight(self, drain: Drain, nodes: Collection[str] = ()) -> int | None:
        """Requests in flight at a drain's places over all Envoys; None while it can't be known.

        `nodes` names the Envoys that must have reported, one entry for each, so that one without load reports, or
        between two streams, is not taken for idle.
        """
        places = self._drains.get(drain)
        if places is None or self.silent(drain, nodes):
            return None
        return sum(
            count
            for reporter in self._reporters.values()
            for place, count in reporter.in_progress.items()
            if place in places
        )

    def silent(self, drain: Drain, nodes: Collection[str] = ()) -> list[str]:
        """The Envoys that a drain waits for because they have not reported often enough, one entry for each."""
        absent = Counter(nodes) - Counter(reporter.node for reporter in self._reporters.values())
        return [*absent.elements()] + [
            reporter.node
            for reporter in self._reporters.values()
            if reporter.reports < reporter.since.get(drain, reporter.reports) + REPORTS
        ]
