"""What the Envoys of one control plane say of their requests: the value of `planes/<replica>/traffic`, and the sum over
several of them.

Invariant: within one run of a control plane (an epoch) the counters only grow; in a sum they do for as long as the sum
lives, whoever comes and goes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any, TypeAlias, TypeVar

from registry.fields import read_figure, read_members, read_optional_int64, read_rows
from registry.records import dump_document, read_document, read_field, read_int64, read_text

Servable: TypeAlias = tuple[str, int | None]
"""Model and version; version None: requests that named none, of a model that is not pinned."""

LATENCY_BOUNDS: tuple[float, ...] = tuple(round(10 ** (power / 10 - 4), 7) for power in range(61))
"""Seconds, ten bounds per decade from 0.1 ms to 100 s: bucket `i` counts what took longer than the bound before and at
most this one, and one more bucket what took longer than all."""


def latency_bucket(seconds: float) -> int:
    """Which bucket counts it."""
    return bisect_left(LATENCY_BOUNDS, seconds)


@dataclass(frozen=True, slots=True)
class VersionTotals:
    """One version of a model, cumulative. `requests`, `errors`: by Envoy's load reports, which count all requests, and
    as errors those that are the server's. `observed`, `observed_errors`, `latency` (counts by LATENCY_BOUNDS): by
    Envoy's access log, which may tell of a share of the requests only, and counts as errors all answers that are not
    OK. `compared`, `differed`: requests that were asked of this and another version; `difference`: the newest
    example."""

    requests: int = 0
    errors: int = 0
    observed: int = 0
    observed_errors: int = 0
    latency: tuple[int, ...] = ()
    in_progress: int = 0
    compared: int = 0
    differed: int = 0
    difference: str = ""

    @property
    def counted(self) -> bool:
        """Whether there is anything to tell of."""
        return self != VersionTotals()


@dataclass(frozen=True, slots=True)
class PlaneTraffic:
    """`epoch`: another one for each run of the control plane. `at`: Unix seconds. `instances`: requests in flight, of
    those that have any, as of the Envoys' newest reports. `since`: what is new in this record was counted after that;
    the record before may be older, for nothing is written while nothing happens."""

    epoch: str
    at: float
    servables: Mapping[Servable, VersionTotals] = field(default_factory=dict)
    instances: Mapping[str, int] = field(default_factory=dict)
    since: float = 0.0


MOST_SERVABLES, MOST_INSTANCES = 1_000, 5_000
MOST_BYTES = 1_000_000
"""Of one record: etcd takes 1.5 MB."""

K = TypeVar("K")
V = TypeVar("V")


def bounded(record: PlaneTraffic) -> PlaneTraffic:
    """The same as etcd takes it: with the busiest, and before them those that are observed, for a rollout may depend on
    a version that gets next to nothing."""

    def busy(totals: VersionTotals) -> tuple[bool, int]:
        return totals.observed > 0, totals.requests

    servables = _first(record.servables, MOST_SERVABLES, busy)
    instances = _first(record.instances, MOST_INSTANCES, int)
    # Names may be long.
    while len(encode_plane_traffic(replace(record, servables=servables, instances=instances))) > MOST_BYTES:
        servables = _first(servables, len(servables) // 2, busy)
        instances = _first(instances, len(instances) // 2, int)
    return replace(record, servables=servables, instances=instances)


def _first(rows: Mapping[K, V], number: int, key: Callable[[V], Any]) -> Mapping[K, V]:
    if len(rows) <= number:
        return rows
    return dict(sorted(rows.items(), key=lambda row: (key(row[1]), str(row[0])), reverse=True)[:number])


_NAMES = {
    "requests": "requests",
    "errors": "errors",
    "observed": "observed",
    "observed_errors": "observedErrors",
    "in_progress": "inProgress",
    "compared": "compared",
    "differed": "differed",
}


def encode_plane_traffic(record: PlaneTraffic) -> bytes:
    """Spell it; what is 0 is left out."""
    rows = []
    for (model, version), totals in sorted(record.servables.items(), key=lambda row: (row[0][0], row[0][1] or -1)):
        row: dict[str, Any] = {"model": model} | ({} if version is None else {"version": version})
        row |= {spelt: getattr(totals, name) for name, spelt in _NAMES.items() if getattr(totals, name)}
        if totals.latency:
            row["latency"] = list(totals.latency)
        if totals.difference:
            row["difference"] = totals.difference
        rows.append(row)
    instances = dict(sorted(record.instances.items()))
    told = {"epoch": record.epoch, "at": record.at, "since": record.since}
    return dump_document(told | {"servables": rows, "instances": instances})


def decode_plane_traffic(raw: bytes) -> PlaneTraffic:
    """Read it back. Raises RecordError."""
    document = read_document(raw)
    return PlaneTraffic(
        read_field(document, "epoch", read_text),
        read_field(document, "at", read_figure(), 0.0),
        dict(read_field(document, "servables", read_rows(_row), ())),
        read_field(document, "instances", read_members(str, read_int64), {}),
        read_field(document, "since", read_figure(), 0.0),
    )


def _row(row: Any) -> tuple[Servable, VersionTotals]:
    counts = {name: read_field(row, spelt, read_int64, 0) for name, spelt in _NAMES.items()}
    latency = read_field(row, "latency", read_rows(read_int64), ())
    totals = VersionTotals(**counts, latency=latency, difference=read_field(row, "difference", read_text, ""))
    return (read_field(row, "model", read_text), read_field(row, "version", read_optional_int64, None)), totals


def added(one: VersionTotals, other: VersionTotals) -> VersionTotals:
    """The sum; the example is the second's, if it has one."""
    counts = {name: getattr(one, name) + getattr(other, name) for name in _NAMES}
    latency = tuple(a + b for a, b in zip_longest(one.latency, other.latency, fillvalue=0))
    return VersionTotals(**counts, latency=latency, difference=other.difference or one.difference)


def grown(now: VersionTotals, before: VersionTotals) -> VersionTotals:
    """What was counted in between; nothing where it is less than before, which no counter ever is."""
    counts = {name: max(0, getattr(now, name) - getattr(before, name)) for name in _NAMES}
    latency = tuple(max(0, a - b) for a, b in zip_longest(now.latency, before.latency, fillvalue=0))
    return replace(VersionTotals(**counts), latency=latency, difference=now.difference, in_progress=0)


def _most(now: VersionTotals, before: VersionTotals) -> VersionTotals:
    counts = {name: max(getattr(now, name), getattr(before, name)) for name in _NAMES}
    latency = tuple(max(a, b) for a, b in zip_longest(now.latency, before.latency, fillvalue=0))
    return replace(VersionTotals(**counts), latency=latency, difference=now.difference, in_progress=now.in_progress)


_REMEMBERED = 100
"""How many runs of control planes a sum remembers, in case they come back."""


class TrafficSum:
    """The counters of all control planes together. One that comes counts with all it has, one that goes leaves what it
    has counted, and goes on from there if it was only its lease that was lost; what is in progress is that of those
    which are there. A record need not name all: of what it leaves out nothing is new."""

    def __init__(self) -> None:
        self._sums: dict[Servable, VersionTotals] = {}
        self._planes: dict[str, PlaneTraffic] = {}
        self._known: dict[tuple[str, str], dict[Servable, VersionTotals]] = {}

    def apply(self, replica: str, record: PlaneTraffic | None) -> frozenset[str]:
        """Take in what a replica says now; None: it has gone. The models of which it told something new."""
        self._planes.pop(replica, None)
        if record is None:
            return frozenset()
        self._planes[replica] = record
        # The newest come last, so that what is forgotten has been silent for longest.
        known = self._known[replica, record.epoch] = self._known.pop((replica, record.epoch), {})
        for one in list(self._known)[: max(0, len(self._known) - _REMEMBERED)]:
            del self._known[one]
        touched = set()
        for servable, totals in record.servables.items():
            before = known.get(servable, VersionTotals())
            if totals != known.get(servable):
                touched.add(servable[0])
                self._sums[servable] = added(self._sums.get(servable, VersionTotals()), grown(totals, before))
                known[servable] = _most(totals, before)
        return frozenset(touched)

    def of(self, model: str) -> dict[int, VersionTotals]:
        """By version; without the requests of which nobody knows which version answered."""
        return {
            version: replace(totals, in_progress=self._in_progress((name, version)))
            for (name, version), totals in self._sums.items()
            if name == model and version is not None
        }

    def all(self) -> dict[Servable, VersionTotals]:
        """All of them."""
        return {one: replace(totals, in_progress=self._in_progress(one)) for one, totals in self._sums.items()}

    def _in_progress(self, servable: Servable) -> int:
        found: Iterable[VersionTotals | None] = (plane.servables.get(servable) for plane in self._planes.values())
        return sum(totals.in_progress for totals in found if totals is not None)


def quantile(latency: tuple[int, ...], share: float) -> float | None:
    """The bound, in seconds, that this share of what was counted does not exceed; None: nothing was counted. What took
    longer than all bounds is told as the last one."""
    wanted, seen = share * sum(latency), 0
    for bucket, count in enumerate(latency):
        seen += count
        if count and seen >= wanted:
            return LATENCY_BOUNDS[min(bucket, len(LATENCY_BOUNDS) - 1)]
    return None
