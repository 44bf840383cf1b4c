"""What TensorFlow Serving's Prometheus page tells of its load. Pure.

The page's names are those of the server's own metrics with colons for slashes, and times are in microseconds
(util/prometheus_exporter.cc, servables/tensorflow/util.cc, batching/batching_session.cc):

    :tensorflow:serving:request_count{model_name,status}                requests that have ended
    :tensorflow:serving:request_latency_sum, _count{model_name,…}      how long they took
    :tensorflow:serving:batching_session:queuing_latency_sum{…}        how long they waited for their batch

It has no figure for what is in progress or waiting now. But time spent by requests per time that went by is how many
there were on average, so the growth of the sums gives both (Little's law).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from registry.loads import LoadRecord

PATH = "/monitoring/prometheus/metrics"
_LINE = re.compile(
    rb"^:tensorflow:serving:(request_count|request_latency_sum|request_latency_count"
    rb"|batching_session:queuing_latency_sum)(\{[^\n]*\})? ([0-9.e+-]+)\s*$",
    re.MULTILINE,
)
_OK = b'status="OK"'


@dataclass(frozen=True, slots=True)
class Totals:
    """Since the server's start, over all models; microseconds."""

    requests: float = 0.0
    errors: float = 0.0
    timed: float = 0.0
    """Requests whose time is in `busy`."""
    busy: float = 0.0
    queued: float | None = None


def read_page(page: bytes) -> Totals:
    """The totals of a page; what it lacks is 0, a batching queue None."""
    sums: dict[bytes, float] = {}
    errors = 0.0
    for name, labels, text in _LINE.findall(page):
        value = float(text)
        sums[name] = sums.get(name, 0.0) + value
        if name == b"request_count" and _OK not in labels:
            errors += value
    timed = sums.get(b"request_latency_count", 0.0)
    # Some releases count only what was timed.
    requests = sums.get(b"request_count", timed)
    queued = sums.get(b"batching_session:queuing_latency_sum")
    return Totals(requests, errors, timed, sums.get(b"request_latency_sum", 0.0), queued)


def load_between(before: Totals, after: Totals, seconds: float) -> LoadRecord:
    """The load in the `seconds` between two pages. A server that was started anew counts from 0."""
    if after.requests < before.requests or after.busy < before.busy:
        before = Totals()
    timed, busy = after.timed - before.timed, after.busy - before.busy
    queued = None if after.queued is None else max(0.0, after.queued - (before.queued or 0.0)) / 1e6 / seconds
    return LoadRecord(
        in_flight=busy / 1e6 / seconds,
        requests=(after.requests - before.requests) / seconds,
        errors=max(0.0, after.errors - before.errors) / seconds,
        latency=busy / 1e6 / timed if timed > 0 else 0.0,
        queued=queued,
    )
