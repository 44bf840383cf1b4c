"""How many requests gRPC clients without a proxy have in flight where something drains, from their load reports. Pure.

They report per locality (gRFC A27), and ours have one address each (resources/proxyless.py). C-core 1.85, measured:
it reports at most once a second, and when nothing has happened since the report before and nothing is in flight, it
says so once and then no more. So silence proves nothing; but on a stream that begins anew the first report always
comes, with all that is in flight, even at endpoints that are gone. A silent client's stream is ended for that
(`overdue`), and it is back in about a second.

Invariant: a number is given only when each client that was connected when all had ACKed the drain (`drain`) has
reported since, or has been gone for so long that it would be back. Who came later was told from the start and sends
nothing there; what it reports is counted all the same, since it may be an earlier one on a new connection.

A process has a client for each of its channels' targets, and all of them share one connection, so a new stream there
may be one that we have ended and that is back, or a new channel's. While one may be back all are taken for it. Only for
so long, though, and not for one that the client has ended itself, or a process that opens and closes channels all the
time would never have reported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from control_plane.drains import Drain, Place, Places
from control_plane.xds.load_ledger import anything_new
from control_plane.xds.view import Client
from registry.addresses import split_address


def requests_in_progress(report: Any) -> Counter[Place]:
    """Place -> requests in progress, of a LoadStatsRequest with localities named HOST:PORT."""
    counts: Counter[Place] = Counter()
    for cluster in report.cluster_stats:
        for locality in cluster.upstream_locality_stats:
            if locality.total_requests_in_progress:
                try:
                    place = cluster.cluster_name, *split_address(locality.locality.sub_zone)
                except ValueError:
                    continue
                counts[place] += locality.total_requests_in_progress
    return counts


@dataclass(slots=True)
class _Gone:
    """A stream that has ended. `asked`: by us, so that its client opens another on the same connection; then
    `returned` tells whether one has been opened since."""

    peer: str
    known_since: float
    ended: float
    until: float
    asked: bool
    returned: bool = False

    def awaited(self, now: float) -> bool:
        """Whether its client may have yet to return."""
        return now < self.until and (not self.returned or now < self.ended + _SOONEST_REPORT)


_REPORTS = 2
_SOONEST_REPORT = 1.5
"""Seconds: a client that is asked to is back after 0.8 to 1.2 s, and reports a second later."""


@dataclass(slots=True)
class _Reporter:
    """One stream. `known_since`: when this client's first one began; `begun`: when this one did; `instead`: the one
    that it seems to be back from."""

    peer: str
    known_since: float
    begun: float
    instead: _Gone | None = None
    reports: int = 0
    in_progress: Mapping[Place, int] = field(default_factory=dict)
    before: dict[Drain, int] = field(default_factory=dict)
    """Drain -> how many reports had come when it was acknowledged."""


class ClientLedger:
    """The reports of all clients. A reporter is one stream, by a number that the caller gives out; `peer` is the
    connection that it is on, which a client's load reports share with its configuration. Times in monotonic seconds.

    `life_seconds`: how long a stream is left alone, so that its first report can come. `return_seconds`: how long a
    stream that ended is waited for.
    """

    def __init__(self, *, life_seconds: float = 3.0, return_seconds: float = 4.0) -> None:
        self._life_seconds = life_seconds
        self._return_seconds = return_seconds
        self._drains: dict[Drain, float] = {}
        self._places: Places = {}
        self._reporters: dict[int, _Reporter] = {}
        self._gone: list[_Gone] = []

    def connected(self, reporter: int, peer: str, now: float) -> None:
        """A stream has begun."""
        asked = [gone for gone in self._gone if gone.asked and gone.peer == peer and now < gone.until]
        instead = next((gone for gone in asked if not gone.returned), None)
        if instead is not None:
            instead.returned = True
        known_since = min((gone.known_since for gone in asked), default=now)
        before = dict.fromkeys(self._drains, 0)
        self._reporters[reporter] = _Reporter(peer, known_since, now, instead, before=before)

    def disconnected(self, reporter: int, now: float, *, asked: bool = False) -> None:
        """A stream has ended; `asked`: because we have ended it, for its client to open another."""
        entry = self._reporters.pop(reporter, None)
        self._gone = [gone for gone in self._gone if gone.until > now]
        if entry is None:
            return
        if entry.instead is not None and not entry.reports:
            # It was a new channel's, perhaps, and is over.
            entry.instead.returned = False
        # What was in flight on a channel ends with it. It is waited for all the same: the connection may have broken.
        since = entry.known_since if asked else entry.begun
        self._gone.append(_Gone(entry.peer, since, now, now + self._return_seconds, asked))

    def drain(self, drains: Places, now: float) -> None:
        """Every client knows of these drains, and of no others."""
        if drains == self._places:
            return
        again = {drain for drain in drains if not anything_new(self._places, drains, drain)}
        self._drains = {drain: self._drains[drain] if drain in again else now for drain in drains}
        for reporter in self._reporters.values():
            reporter.before = {
                drain: reporter.before[drain] if drain in again else reporter.reports for drain in drains
            }
        self._places = dict(drains)

    def reported(self, reporter: int, report: Any) -> None:
        """A report came in; it replaces what this stream said before."""
        entry = self._reporters[reporter]
        entry.reports += 1
        entry.in_progress = requests_in_progress(report)

    def overdue(self, now: float) -> frozenset[int]:
        """The streams that are to be ended, so that their clients report."""
        return frozenset(
            number
            for number, reporter in self._reporters.items()
            if now - reporter.begun >= self._life_seconds and any(self._owes(reporter, drain) for drain in self._drains)
        )

    def in_flight(self, drain: Drain, clients: Collection[Client], now: float) -> int | None:
        """Requests in flight at the places of a drain over all clients; None while it can't be known.

        `clients`: those that may send there, so that one that has yet to open its stream of load reports, or has none,
        is not taken for idle.
        """
        drained = self._drains.get(drain)
        if drained is None:
            return None
        expected = Counter(client.peer for client in clients if client.since <= drained)
        if expected - Counter(reporter.peer for reporter in self._reporters.values()):
            return None
        if any(gone.known_since <= drained and gone.awaited(now) for gone in self._gone):
            return None
        if any(self._owes(reporter, drain) for reporter in self._reporters.values()):
            return None
        places = self._places[drain]
        return sum(
            count
            for reporter in self._reporters.values()
            for place, count in reporter.in_progress.items()
            if place in places
        )

    def awaits_return(self, now: float) -> bool:
        """Whether `in_flight` may change by the time alone."""
        return bool(self._drains) and any(gone.awaited(now) for gone in self._gone)

    def _owes(self, reporter: _Reporter, drain: Drain) -> bool:
        drained = self._drains[drain]
        if reporter.known_since > drained:
            return False
        # The first report of a stream is made a second after its begin. On an older stream the report that comes next
        # may have been made before.
        wanted = 1 if reporter.begun > drained else _REPORTS
        return reporter.reports - reporter.before[drain] < wanted
