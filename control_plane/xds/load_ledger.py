"""How many requests are in flight where something drains, from Envoys' load reports. Pure.

A place is an endpoint in a cluster: of one instance one version may drain while it goes on with others.

Invariant: a number is given only when every Envoy that counts has been seen to run on time for MARGIN since it was told
to (`drain`, which comes after all of them have ACKed the drain), or since it connected. What a report leaves out is
idle: Envoy names only what is in use.

What is proven, and what is a margin. Envoy's main thread hands an EDS update to every worker's queue before it ACKs it
(cluster_manager_impl.cc, postThreadLocalClusterUpdate), and the same thread makes the load reports, from counters that
the workers write to (load_stats_reporter_impl.cc). A worker takes its queue in its next turn: no acknowledgement and no
report tells when that was. So what is waited for is evidence, not proof:
- A report counts when it says that nothing was issued to the place since the report before; a worker that has yet to
  take the update over and is busy shows itself by that.
- It counts when it came on time: each has the time since the one before it, by Envoy's own clock. A main thread that
  comes late is short of CPU, and so may be the workers. Then the count begins again, and lasts as long as the longest
  delay; after ENOUGH seconds, by Envoy's clock too, a machine that is always late has to do.
- The first report after the ACK doesn't count: it may have been made before.
What is left is a worker that stands still for longer than MARGIN while the main thread is on time, and then sends the
one request that it had already taken in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from control_plane.drains import Drain, Place, Places

MARGIN = 0.025
"""Seconds: three reports of 10 ms, of which each may come a little early."""
ENOUGH = 1.0
_LATE = 2.0
"""A report is late after this many times what was asked for."""


def requests_in_progress(report: Any) -> Counter[Place]:
    """Place -> requests in progress, of a LoadStatsRequest with endpoint granularity; nothing of what is idle."""
    return _counts(report, "total_requests_in_progress")


def requests_issued(report: Any) -> Counter[Place]:
    """Place -> requests that were begun since the report before."""
    return _counts(report, "total_issued_requests")


def _counts(report: Any, field_name: str) -> Counter[Place]:
    counts: Counter[Place] = Counter()
    for cluster in report.cluster_stats:
        for locality in cluster.upstream_locality_stats:
            for endpoint in locality.upstream_endpoint_stats:
                if count := getattr(endpoint, field_name):
                    where = endpoint.address.socket_address
                    counts[cluster.cluster_name, where.address, where.port_value] += count
    return counts


def time_since_last(report: Any) -> float | None:
    """Seconds since the report before, or since Envoy was asked for the newest cluster; None: it has none of them."""
    return min((one.load_report_interval.ToNanoseconds() / 1e9 for one in report.cluster_stats), default=None)


def anything_new(known: Places, drains: Places, drain: Drain) -> bool:
    """Whether a drain is one that was not looked at before in all of its places."""
    return not drains[drain] <= known.get(drain, frozenset())


@dataclass(slots=True)
class _Course:
    """What one Envoy's reports have told since it was told of one drain. Seconds: `on_time`, in a row; `longest`, the
    longest delay; `passed`, in all."""

    begun: bool = False
    on_time: float = 0.0
    longest: float = 0.0
    passed: float = 0.0
    settled: bool = False

    def reported(self, took: float, late: bool, issued: bool) -> None:
        if not self.begun:
            took = 0.0
        elif late:
            self.longest = max(self.longest, took)
        self.begun = True
        self.passed += took
        self.on_time = 0.0 if late or issued else self.on_time + took
        if self.on_time >= max(MARGIN, self.longest) or self.passed >= ENOUGH:
            # It stays so: what is issued there later is counted.
            self.settled = True


@dataclass(slots=True)
class _Reporter:
    node: str
    in_flight: Mapping[Place, int] = field(default_factory=dict)
    since: dict[Drain, _Course] = field(default_factory=dict)


class LoadLedger:
    """The reports of all Envoys. A reporter is one stream, by a number that the caller gives out."""

    def __init__(self) -> None:
        self._drains: Places = {}
        self._places: frozenset[Place] = frozenset()
        self._reporters: dict[int, _Reporter] = {}

    def connected(self, reporter: int, node: str) -> None:
        """A stream has begun; `node` is the Envoy's node id."""
        self._reporters[reporter] = _Reporter(node, since={drain: _Course() for drain in self._drains})

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
            reporter.since = {drain: reporter.since[drain] if drain in again else _Course() for drain in drains}
        self._drains, self._places = dict(drains), frozenset(chain.from_iterable(drains.values()))
        return True

    def reported(self, reporter: int, report: Any, asked: float) -> None:
        """A report came in; it replaces what this Envoy said before. It was asked for one every `asked` seconds."""
        entry = self._reporters[reporter]
        running, issued = requests_in_progress(report), requests_issued(report)
        # What was begun and has ended since the report before tells that another one may be on its way.
        entry.in_flight = {
            place: max(running[place], issued[place])
            for place in running.keys() | issued.keys()
            if place in self._places
        }
        took = time_since_last(report) or asked
        late = took > _LATE * asked
        for drain, course in entry.since.items():
            if not course.settled:
                course.reported(took, late, any(issued[place] for place in self._drains[drain]))

    def in_flight(self, drain: Drain, nodes: Collection[str] = ()) -> int | None:
        """Requests in flight at a drain's places over all Envoys, or begun since the report before; None while it
        can't be known.

        `nodes` names the Envoys that must have reported, one entry for each, so that one without load reports, or
        between two streams, is not taken for idle.
        """
        places = self._drains.get(drain)
        if places is None or self.silent(drain, nodes):
            return None
        return sum(
            count
            for reporter in self._reporters.values()
            for place, count in reporter.in_flight.items()
            if place in places
        )

    def silent(self, drain: Drain, nodes: Collection[str] = ()) -> list[str]:
        """The Envoys that a drain waits for, since they have not been seen to run on time for long enough, one entry
        for each."""
        absent = Counter(nodes) - Counter(reporter.node for reporter in self._reporters.values())
        return [*absent.elements()] + [
            reporter.node
            for reporter in self._reporters.values()
            if drain in reporter.since and not reporter.since[drain].settled
        ]
