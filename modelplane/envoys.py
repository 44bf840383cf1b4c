"""The connected Envoys as lines of text. Pure: reports of the control planes' /envoys pages in, lines out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from modelplane.lines import Line, Tone, block
from modelplane.planes import Report
from modelplane.table import listed

ORDER = ("LDS", "RDS", "CDS", "EDS", "ECDS")
_ERROR_SHOWN = 400


def envoys(reports: Sequence[Report], *, wide: bool = False) -> list[Line]:
    """Every stream with what it has acknowledged and refused, and the control planes that could not be asked."""
    streams = sorted(
        ((stream, report) for report in reports for stream in report.page.get("envoys", ())),
        key=lambda pair: (pair[0]["node"], _name(pair[1])),
    )
    lines: list[Line] = []
    if streams:
        lines += _table(streams, wide=wide)
    elif any(not report.error for report in reports):
        lines.append(Line(f"No Envoys are connected to {listed([_name(r) for r in reports if not r.error])}."))
    if wide and streams:
        lines += _types(streams)
    lines += refusals(stream for stream, _ in streams)
    lines += unreachable(reports)
    return lines[1:] if lines and not lines[0].text else lines


def unreachable(reports: Iterable[Report]) -> list[Line]:
    """Which control planes could not be asked, and why; nothing if all could."""
    failed = [Line(f"{report.plane}: {report.error}", Tone.BAD) for report in reports if report.error]
    return [Line(""), Line("CONTROL PLANES THAT DO NOT ANSWER"), *failed] if failed else []


def refused(stream: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Type, name and message of each resource that a stream has refused and not acknowledged since."""
    return [(kind, row["name"], row["message"]) for kind, one in _by_type(stream) for row in one["refused"]]


def refusals(streams: Iterable[Mapping[str, Any]]) -> list[Line]:
    """What each stream refused, a line for each message."""
    same: dict[tuple[str, str, str], list[str]] = {}
    for stream in streams:
        for kind, name, message in refused(stream):
            same.setdefault((stream["node"], kind, message), []).append(name)
    lines = [
        Line(f"{node}: {kind} {listed(names)}: {reason(message)}", Tone.BAD)
        for (node, kind, message), names in same.items()
    ]
    return [Line(""), Line("REFUSED"), *lines] if lines else []


def reason(message: str) -> str:
    """A NACK's message, short: Envoy prints the whole resource first, and the reason last."""
    return message if len(message) <= _ERROR_SHOWN else "… " + message[-_ERROR_SHOWN:]


def _name(report: Report) -> str:
    return str(report.page.get("replica") or report.plane.name)


def _by_type(stream: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    types = stream["types"]
    return sorted(types.items(), key=lambda item: (ORDER.index(item[0]) if item[0] in ORDER else len(ORDER), item[0]))


def _table(streams: Sequence[tuple[Mapping[str, Any], Report]], *, wide: bool) -> list[Line]:
    head = ("ENVOY", "CLIENT", "CONTROL PLANE", "SINCE", "STATE")
    more = ("CLUSTER", "PEER", "VIEW", "SERVICE", "PROTOCOL", "CONVERGED") if wide else ()
    rows, tones = [], []
    for stream, report in streams:
        state, tone = _state(stream, report.page.get("revision", 0))
        row = (
            stream["node"] or "(unnamed)",
            stream.get("client") or "-",
            _name(report),
            age(stream["connected_seconds"]),
        )
        extra = (
            (
                *(str(stream.get(key) or "-") for key in ("cluster", "peer", "view", "service", "protocol")),
                str(stream["converged_revision"]),
            )
            if wide
            else ()
        )
        rows.append((*row, *extra, state))
        tones.append(tone)
    return block((*head[:-1], *more, head[-1]), rows, tones)


def _state(stream: Mapping[str, Any], revision: int) -> tuple[str, Tone]:
    bad = [f"{kind} {len(one['refused'])}" for kind, one in _by_type(stream) if one["refused"]]
    waiting = [
        f"{name} {count}" for name, one in _by_type(stream) if (count := one["outstanding"] - len(one["refused"])) > 0
    ]
    said = [f"refused {', '.join(bad)}"] if bad else []
    said += [f"pending {', '.join(waiting)}"] if waiting else []
    if said:
        return "; ".join(said), Tone.BAD if bad else Tone.WAITING
    if not stream["types"]:
        return "connecting", Tone.WAITING
    if not stream["converged_revision"]:
        return "subscribing", Tone.WAITING
    if stream["converged_revision"] < revision:
        return f"at revision {stream['converged_revision']} of {revision}", Tone.WAITING
    return "has everything", Tone.PLAIN


def _types(streams: Sequence[tuple[Mapping[str, Any], Report]]) -> list[Line]:
    head = (
        *("ENVOY", "CONTROL PLANE", "TYPE", "NAMES", "SENT", "REMOVED", "RESPONSES", "ACKED", "NACKED"),
        *("UNANSWERED", "OUTSTANDING", "SENT@", "ACKED@", "NACKED@"),
    )
    keys = ("sent", "removed", "responses", "acked", "nacked", "unanswered", "outstanding")
    revisions = ("sent_revision", "acked_revision", "nacked_revision")
    rows = [
        (
            *(stream["node"], _name(report), name),
            "*" if one["wildcard"] else str(one["subscribed"]),
            *(str(one[key]) for key in keys),
            *(str(one.get(key) or "-") for key in revisions),
        )
        for stream, report in streams
        for name, one in _by_type(stream)
    ]
    return block(head, rows)


def age(seconds: float) -> str:
    """`42s`, `12m`, `3h05m`, `9d`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86_400}d"
