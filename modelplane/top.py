"""How busy each version is, as lines of text or for machines. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelplane.lines import Line, Tone, block
from modelplane.rates import Usage
from modelplane.table import fit
from registry.plane_traffic import Servable

_HEAD = ("MODEL", "VERSION", "REQ/S", "ERRORS/S", "P50", "P99", "IN FLIGHT")
_WIDTH = 80
_SHORTEST = 12
_GAP = 2


def lines(usage: Mapping[Servable, Usage], *, whole: bool = False) -> list[Line]:
    """A line for each version; models' names are cut so that 80 characters hold it, unless `whole`."""
    cells = [_cells(servable, one) for servable, one in usage.items()]
    rest = sum(_GAP + max(len(row[at]) for row in (_HEAD, *cells)) for at in range(1, len(_HEAD)))
    width = max(_SHORTEST, _WIDTH - rest)
    rows = cells if whole else [[fit(row[0], width), *row[1:]] for row in cells]
    tones = [Tone.BAD if one.errors else Tone.PLAIN for one in usage.values()]
    return block(_HEAD, rows, tones)[1:]


def _cells(servable: Servable, one: Usage) -> list[str]:
    model, version = servable
    return [
        model,
        "-" if version is None else str(version),
        rate(one.requests),
        rate(one.errors),
        _seconds(one.p50),
        _seconds(one.p99),
        str(one.totals.in_progress),
    ]


def rate(value: float) -> str:
    """Per second, with three digits or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def documents(usage: Mapping[Servable, Usage]) -> list[dict[str, Any]]:
    """The same for machines; what is not known is null. Times in seconds; `total` since the control planes began."""
    return [
        {
            "model": model,
            "version": version,
            "requestsPerSecond": round(one.requests, 3),
            "errorsPerSecond": round(one.errors, 3),
            "p50Seconds": one.p50,
            "p99Seconds": one.p99,
            "inFlight": one.totals.in_progress,
            "total": {
                "requests": one.totals.requests,
                "errors": one.totals.errors,
                "observed": one.totals.observed,
                "notOk": one.totals.observed_errors,
            },
        }
        for (model, version), one in usage.items()
    ]
