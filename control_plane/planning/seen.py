"""What both versions of a canary did since its step began, by statistics that may be lost at any time. Pure.

Invariant: what was once written into the record counts for the step, whoever leads next and whatever is lost. Counts
that come from another accumulator (a new leader's), or are less than before, are counted from where they are: a loss
can only make a step longer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from itertools import zip_longest
from typing import Any

from registry.plane_traffic import VersionTotals
from registry.rollouts import RolloutRecord

_SOURCE = "source"
_SEEN = "seen"
_COUNTS = ("requests", "errors", "observed", "observed_errors", "compared", "differed")


def begin(record: RolloutRecord, totals: Mapping[int, VersionTotals], source: str) -> RolloutRecord:
    """Count from here."""
    observed = {name: value for name, value in record.observed.items() if name != _SEEN}
    return replace(record, base=_base(record, totals, {}, source), observed=observed)


def since(
    record: RolloutRecord, totals: Mapping[int, VersionTotals], source: str
) -> tuple[RolloutRecord, dict[int, VersionTotals]]:
    """The record, with another base where the statistics can't go on from it, and what happened since the step
    began, by version."""
    found = _minus_base(record, totals) if record.base.get(_SOURCE) == source else None
    if found is None:
        known = {version: read_totals(record.observed.get(_SEEN, {}).get(str(version))) for version in _both(record)}
        record = replace(record, base=_base(record, totals, known, source))
        found = known
    return record, found


def noted(record: RolloutRecord, found: Mapping[int, VersionTotals]) -> dict[str, Any]:
    """What the record's `observed` has of it."""
    return {**record.observed, _SEEN: {str(version): spell_totals(one) for version, one in sorted(found.items())}}


def seen(record: RolloutRecord) -> dict[int, VersionTotals]:
    """What the record says happened since the step began, by version; for people."""
    return {
        version: read_totals(record.observed.get(_SEEN, {}).get(str(version)))
        for version in _both(record)
        if str(version) in record.observed.get(_SEEN, {})
    }


def _both(record: RolloutRecord) -> list[int]:
    return [version for version in (record.from_version, record.to_version) if version is not None]


def _base(
    record: RolloutRecord, totals: Mapping[int, VersionTotals], known: Mapping[int, VersionTotals], source: str
) -> dict[str, Any]:
    """Below zero where what was seen is more than the accumulator knows of."""
    rows = {
        str(version): spell_totals(_minus(totals.get(version, VersionTotals()), known.get(version, VersionTotals())))
        for version in _both(record)
    }
    return {_SOURCE: source, **rows}


def _minus_base(record: RolloutRecord, totals: Mapping[int, VersionTotals]) -> dict[int, VersionTotals] | None:
    """None if anything is less than it was when it was last written down."""
    found = {}
    for version in _both(record):
        base, before = record.base.get(str(version)), record.observed.get(_SEEN, {}).get(str(version))
        if base is None:
            return None
        now = _minus(totals.get(version, VersionTotals()), read_totals(base))
        lost = _minus(now, read_totals(before))
        if any(getattr(lost, name) < 0 for name in _COUNTS) or any(count < 0 for count in lost.latency):
            return None
        found[version] = now
    return found


def _minus(one: VersionTotals, other: VersionTotals) -> VersionTotals:
    counts = {name: getattr(one, name) - getattr(other, name) for name in _COUNTS}
    latency = [a - b for a, b in zip_longest(one.latency, other.latency, fillvalue=0)]
    while latency and not latency[-1]:
        latency.pop()
    return VersionTotals(**counts, latency=tuple(latency), difference=one.difference)


def spell_totals(totals: VersionTotals) -> dict[str, Any]:
    """As JSON; whatever is 0 is left out."""
    document = asdict(totals)
    return {name: value for name, value in document.items() if value}


def read_totals(document: Any) -> VersionTotals:
    """Read it back; what can't be read counts as nothing."""
    row = document if isinstance(document, Mapping) else {}
    counts = {name: row[name] for name in _COUNTS if isinstance(row.get(name), int)}
    rows, text = row.get("latency"), row.get("difference")
    latency = tuple(count for count in rows if isinstance(count, int)) if isinstance(rows, list | tuple) else ()
    return VersionTotals(**counts, latency=latency, difference=text if isinstance(text, str) else "")
