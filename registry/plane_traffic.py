"""What the Envoys of one control plane say of their requests: what `planes/<replica>/traffic` holds by version.

Invariant: within one run of a control plane the counters only grow.
"""

from __future__ import annotations

from dataclasses import dataclass

LATENCY_BOUNDS: tuple[float, ...] = tuple(round(10 ** (power / 10 - 4), 7) for power in range(61))
"""Seconds, ten bounds per decade from 0.1 ms to 100 s: bucket `i` counts what took longer than the bound before and at
most this one, and one more bucket what took longer than all."""


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
