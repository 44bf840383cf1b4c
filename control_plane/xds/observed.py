"""How the requests ended that Envoy's access log tells of. Pure.

Invariants: the counters only grow; an entry counts for the one version whose cluster answered it, never for a guess.

What counts as an error is every answer that is not OK, a client's INVALID_ARGUMENT too: a new version that has other
inputs answers so to all that the old one understood. Whether it is the version's fault the gate finds out by the old
version's answers in the same time (planning/gates.py). A request that the client gave up is no answer: it is observed
and its time counts, since a version that is too slow is given up, but it is an error only if its deadline was over.

The time is the server's, with Envoy's retries: from the last byte that came from the client to the last one from the
server, so that a client's slow line is not taken for a slow model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from envoy.data.accesslog.v3 import accesslog_pb2

from control_plane.resources.names import REST_LISTENER, read_cluster
from registry.plane_traffic import LATENCY_BOUNDS, Servable, VersionTotals, latency_bucket

_OK, _CANCELLED = "0", "1"
_NEARLY = 0.9
"""Of a deadline: the client's own clock began a little earlier, and its reset takes its time."""
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
# An older Envoy doesn't say.
_AT_THE_END = (accesslog_pb2.NotSet, accesslog_pb2.DownstreamEnd)
# They run no model, and would only make its times look good.
_ASKED_ABOUT_A_MODEL = ("/GetModelMetadata", "/GetModelStatus", "/metadata")


@dataclass(slots=True)
class _Counts:
    observed: int = 0
    errors: int = 0
    latency: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS) + 1))


class Observed:
    """What all entries have told so far."""

    def __init__(self) -> None:
        self._counts: defaultdict[Servable, _Counts] = defaultdict(_Counts)

    def count(self, listener: str, entry: Any) -> None:
        """One HTTPAccessLogEntry of the log that is called like its listener."""
        common = entry.common_properties
        servable = read_cluster(common.upstream_cluster)
        if servable is None or common.access_log_type not in _AT_THE_END or _asks_about(entry.request.path):
            return
        counts = self._counts[servable]
        counts.observed += 1
        counts.errors += _failed(listener, entry)
        if common.HasField("upstream_remote_address"):
            counts.latency[latency_bucket(_took(common))] += 1

    def totals(self) -> dict[Servable, VersionTotals]:
        """By model and version."""
        return {
            servable: VersionTotals(observed=one.observed, observed_errors=one.errors, latency=_trimmed(one.latency))
            for servable, one in self._counts.items()
        }


def _asks_about(path: str) -> bool:
    path = path.partition("?")[0]
    return path.endswith(_ASKED_ABOUT_A_MODEL)


def _failed(listener: str, entry: Any) -> bool:
    flags, answer = entry.common_properties.response_flags, entry.response
    given_up = flags.downstream_connection_termination or flags.downstream_remote_reset
    if listener == REST_LISTENER:
        code = answer.response_code.value
        return code >= 400 if code else not given_up
    status = answer.response_trailers.get("grpc-status") or answer.response_headers.get("grpc-status")
    if status is not None:
        return status not in (_OK, _CANCELLED)
    return not given_up or _deadline_over(entry)


def _deadline_over(entry: Any) -> bool:
    deadline = read_timeout(entry.request.request_headers)
    return deadline is not None and _seconds(entry.common_properties.duration) >= _NEARLY * deadline


def read_timeout(headers: Mapping[str, str]) -> float | None:
    """Seconds, of gRPC's `grpc-timeout`: up to eight digits and a unit (PROTOCOL-HTTP2.md); None if there is none."""
    text = headers.get("grpc-timeout", "")
    digits, unit = text[:-1], _UNITS.get(text[-1:])
    return int(digits) * unit if unit and digits.isascii() and digits.isdigit() and len(digits) <= 8 else None


def _took(common: Any) -> float:
    ended = (
        common.time_to_last_upstream_rx_byte if common.HasField("time_to_last_upstream_rx_byte") else common.duration
    )
    return max(0.0, _seconds(ended) - _seconds(common.time_to_last_rx_byte))


def _seconds(duration: Any) -> float:
    return float(duration.ToNanoseconds() / 1e9)


def _trimmed(counts: list[int]) -> tuple[int, ...]:
    last = max((at for at, count in enumerate(counts) if count), default=-1)
    return tuple(counts[: last + 1])
