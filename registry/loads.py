"""How busy an instance is: the value of `instances/<instance>/load`. For people and dashboards: no routing goes by it.

Figures are rounded to three digits, so that a server whose load hardly changes is hardly written about.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from registry.records import read_document, read_field

INTERVAL = 5.0
"""Seconds, at least, between two writes of one instance."""


@dataclass(frozen=True, slots=True)
class LoadRecord:
    """Means over the last few seconds. `in_flight`: requests at a time; `requests`, `errors` (a part of the former):
    per second; `latency`: of a request, in seconds; `queued`: requests that wait in batching's queues, None where there
    are none."""

    in_flight: float = 0.0
    requests: float = 0.0
    errors: float = 0.0
    latency: float = 0.0
    queued: float | None = None


def encode_load(record: LoadRecord) -> bytes:
    """Spell it."""
    document: dict[str, float] = {
        "inFlight": _rounded(record.in_flight),
        "requestsPerSecond": _rounded(record.requests),
        "errorsPerSecond": _rounded(record.errors),
        "latencySeconds": _rounded(record.latency),
    }
    if record.queued is not None:
        document["queued"] = _rounded(record.queued)
    return json.dumps(document, separators=(",", ":")).encode()


def decode_load(raw: bytes) -> LoadRecord:
    """Read it back. Raises RecordError."""
    document = read_document(raw)

    def figure(name: str) -> float:
        return read_field(document, name, _figure, 0.0)

    return LoadRecord(
        figure("inFlight"),
        figure("requestsPerSecond"),
        figure("errorsPerSecond"),
        figure("latencySeconds"),
        read_field(document, "queued", _figure_or_none, None),
    )


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _figure(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("not a number")
    if not 0 <= value < float("inf"):
        raise ValueError("not a possible figure")
    return float(value)


def _figure_or_none(value: Any) -> float | None:
    return None if value is None else _figure(value)
