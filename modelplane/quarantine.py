"""What is quarantined as lines of text. Pure: reports of the control planes' /quarantine pages in, lines out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from modelplane.envoys import reason, unreachable
from modelplane.lines import Line, Tone
from modelplane.planes import Report
from modelplane.table import listed

_SAME = ("view", "model", "type", "name", "version", "last_good_version")
_WITHHELD = "it is sent to nobody, for no Envoy has taken a version of it yet; who holds one keeps it"


def all_quarantined(reports: Sequence[Report]) -> list[Line]:
    """Everything that is quarantined, and the control planes that could not be asked."""
    lines = quarantine(reports)
    if not lines and any(not report.error for report in reports):
        lines = [Line(""), Line("Nothing is quarantined.")]
    return [*lines, *unreachable(reports)][1:]


def quarantine(reports: Iterable[Report], model: str | None = None) -> list[Line]:
    """Of one model's resources, or for None of all: which were refused, by whom and why, and what holds now.

    Control planes that say the same are named together; each judges by its own Envoys. No lines if there is nothing.
    """
    found: dict[tuple[str, ...], tuple[Mapping[str, Any], list[str]]] = {}
    for report in reports:
        for row in report.page.get("quarantined", ()):
            if model in (None, row["model"]):
                key = tuple(str(row.get(one)) for one in _SAME)
                found.setdefault(key, (row, []))[1].append(str(report.page.get("replica") or report.plane.name))
    lines = [line for _, (row, planes) in sorted(found.items()) for line in _entry(row, planes, whose=model is None)]
    return [Line(""), Line("QUARANTINED, until its next version"), *lines] if lines else []


def _entry(row: Mapping[str, Any], planes: list[str], *, whose: bool) -> list[Line]:
    at = f" at {row['peer']}" if row["peer"] else ""
    good = row["last_good_version"]
    of_model = f" of {'model ' + row['model'] if row['model'] else 'all models'}" if whose else ""
    return [
        Line(f"{row['type']} {row['name']}{of_model}, version {row['version']}", Tone.BAD),
        Line(f"  refused by  {row['node'] or 'an unnamed Envoy'}{at}, revision {row['since_revision']}"),
        *([Line(f"  field       {row['field']}")] if row["field"] else []),
        Line(f"  message     {reason(row['message'])}"),
        Line(f"  now         {f'every client is sent its last good version, {good}' if good else _WITHHELD}"),
        Line(f"  says        {listed(planes)}"),
    ]
