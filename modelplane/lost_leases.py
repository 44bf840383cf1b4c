"""What the control planes hold against lost leases, as lines of text. Pure: their /guard pages in, lines out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from modelplane.planes import Report
from modelplane.table import columns
from registry.records import PlaneRecord


def lost_leases(reports: Sequence[Report], planes: Mapping[str, PlaneRecord], now: float) -> list[str]:
    """The suspects, and whatever keeps a control plane from serving yet; nothing while all is well. `now`: seconds
    since the epoch."""
    lines = []
    for report in reports:
        if waiting := report.page.get("waiting"):
            lines.append(f"{report.plane.name} does not serve Envoys yet: {waiting}")
        record = planes.get(report.plane.name)
        if report.error and record is not None and record.suspects:
            lines.append(
                f"{report.plane.name} says that {record.suspects} instances lost their leases, and can't be asked "
                f"which: {report.error}"
            )
    rows = [
        _row(report, one, now, several=len(reports) > 1)
        for report in reports
        for one in report.page.get("suspects", ())
    ]
    if rows:
        head = ("INSTANCE", "SINCE", "SERVABLES", "CHECK", "USED ON FOR", "UNTIL")
        lines += columns(("CONTROL PLANE", *head) if len(reports) > 1 else head, rows)
    return ["", "LEASES LOST", *lines] if lines else []


def _row(report: Report, one: Mapping[str, Any], now: float, *, several: bool) -> tuple[str, ...]:
    until = one.get("until")
    check = one["check"] if one["check"] != "does not answer" else f"fails: {one['detail']}"
    row = (
        str(one["instance"]),
        f"{max(0.0, now - one['since']):.0f} s",
        str(one["servables"]),
        check,
        str(one["held"]),
        f"in {max(0.0, until - now):.0f} s" if until is not None else "-",
    )
    return (report.plane.name, *row) if several else row


def told(reports: Iterable[Report]) -> list[Report]:
    """Without those that are older than the page."""
    return [report for report in reports if "this port has" not in report.error]
