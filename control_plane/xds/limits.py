"""How long a stream waits and how much it sends at once. Every wait has an end: see order.py."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds and bytes.

    `response_bytes`: a larger response is sent as several, under every client's receive limit (gRPC's default is
    4 MiB). `window`: unanswered responses per type before the next one is held back, so that what piles up for a slow
    client merges; `patience_seconds`: after which it goes out anyway. That is soon, because Envoy withholds every CDS
    ACK while any cluster warms: when clusters come steadily, none is ever ACKed. But with more than `warming_clusters`
    of which the EDS is not ACKed either, it is the client that is slow; then only EDS ACKs let more clusters out, and
    no more than these at once. (An Envoy short of CPU that was sent clusters faster than it could take them was busy
    for seconds on end, did not get to its pings, took the control plane for dead, and began anew.) EDS, which changes
    most and is always answered, has a window and a patience of its own, which hold back what the client has an older
    state of; the endpoints of clusters that warm, up to as many as `warming_clusters`, have `warming_window`.
    `gate_seconds` and `removal_seconds`: the longest wait for another resource's ACK. `suspect_seconds`: how soon an
    Envoy asks for the EDS of a cluster that it took. `settle_seconds`: how soon a client that reconnects has
    subscribed to all that it wants. `away_seconds`: how long after its first request for EDS an Envoy that reconnects
    can take to come back to CDS; that is more than the 15 s after which an Envoy gives up a cluster's first EDS, unless
    told otherwise.
    """

    response_bytes: int = 1 << 20
    window: int = 8
    patience_seconds: float = 0.1
    warming_clusters: int = 256
    endpoint_window: int = 1
    endpoint_patience_seconds: float = 5.0
    warming_window: int = 8
    gate_seconds: float = 10.0
    removal_seconds: float = 10.0
    suspect_seconds: float = 1.0
    settle_seconds: float = 3.0
    away_seconds: float = 30.0
