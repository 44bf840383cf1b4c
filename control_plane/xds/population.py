"""How many Envoys a set of streams belongs to. Pure.

An Envoy has one aggregated stream, or one for each type of resource, or (with EDS in a config source of its own per
cluster) several of one type; node ids need not be unique.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


def population(streams: Iterable[tuple[str, str | None]]) -> tuple[str, ...]:
    """Node ids, one entry for each Envoy, of streams given as (node id, their only type or None).

    Per node id: the aggregated streams, and as many more as there are separate ones of the type with the most.
    """
    separate: dict[str, int] = {}
    aggregated: Counter[str] = Counter()
    for (node, only_type), count in Counter(streams).items():
        if only_type is None:
            aggregated[node] += count
        else:
            separate[node] = max(separate.get(node, 0), count)
    return tuple((aggregated + Counter(separate)).elements())
