"""How many Envoys a set of streams belongs to. Pure.

An Envoy has one aggregated stream, or one for each type that it takes from separate services; where EDS, RDS or ECDS
have config sources of their own, one for each cluster, route table or filter even (Envoy 1.40). All of them share its
one connection. Node ids need not be unique.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from control_plane.resources.resource import CLUSTER, LISTENER

_ONE_EACH = frozenset({None, LISTENER, CLUSTER})


class StreamKey(NamedTuple):
    """`peer` is the other end of its connection; `only_type` is None on an aggregated stream."""

    node: str
    peer: str
    only_type: str | None


def population(streams: Iterable[StreamKey]) -> tuple[str, ...]:
    """Node ids, one entry for each Envoy.

    Per node id: as many as there are connections, and no fewer than streams of a kind that an Envoy has one of.
    """
    by_node: dict[str, list[StreamKey]] = defaultdict(list)
    for stream in streams:
        by_node[stream.node].append(stream)
    nodes: Counter[str] = Counter()
    for node, own in by_node.items():
        single = [stream for stream in own if stream.only_type in _ONE_EACH]
        kinds = Counter(stream.only_type for stream in single)
        nodes[node] = max(len({stream.peer for stream in single or own}), *kinds.values(), 1)
    return tuple(nodes.elements())
