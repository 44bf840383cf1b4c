"""The instances as lines of text, or as JSON: what they hold, how busy they are. Pure: a picture of the registry in."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from modelplane.fleet import Picture, State
from modelplane.lines import Line, Tone, block
from modelplane.table import rest_address
from registry.addresses import join_address
from registry.loads import LoadRecord
from registry.records import InstanceRecord, InstanceState

_TONES = {
    InstanceState.SERVING: Tone.PLAIN,
    InstanceState.UNREACHABLE: Tone.BAD,
}


@dataclass(frozen=True, slots=True)
class _Row:
    """`ready` of `known` models; `draining`: requests in flight where it drains, by the load reports of Envoys; None
    where nothing drains or not all have reported. `by_envoys`: requests in flight as of their last reports, which come
    every few seconds; None where no control plane tells."""

    name: str
    record: InstanceRecord
    ready: int
    known: int
    load: LoadRecord | None
    draining: int | None
    by_envoys: int | None


def instances(picture: Picture, *, wide: bool = False) -> list[Line]:
    """A line for each instance, with the columns of a table that 80 characters hold; `wide`: all."""
    rows = _rows(picture)
    if not rows:
        return [Line("The registry knows no instance.")]
    head = ["INSTANCE", "STATE", "MODELS", "ZONE", "CAPACITY", "IN FLIGHT", "REQ/S", "LATENCY", "QUEUE"]
    more = ["BY ENVOYS", "GRPC", "REST", "ERRORS/S", "MONITOR", "MANAGED", "MEMORY", "LABELS", "CONDITIONS", "DETAIL"]
    more = more if wide else []
    cells = [[*_cells(row), *(_more(row) if wide else [])] for row in rows]
    tones = [_TONES.get(row.record.state, Tone.WAITING) for row in rows]
    lines = block([*head, *more], cells, tones)[1:]
    troubled = [Line(f"{row.name}: {_conditions(row)}") for row in rows if row.record.conditions]
    return lines if wide or not troubled else [*lines, Line(""), Line("CONDITIONS"), *troubled]


def documents(picture: Picture) -> list[dict[str, Any]]:
    """The same for machines; what is not known is null. Times in seconds."""
    return [_document(row) for row in _rows(picture)]


def _rows(picture: Picture) -> list[_Row]:
    known: defaultdict[str, set[str]] = defaultdict(set)
    ready: defaultdict[str, set[str]] = defaultdict(set)
    for version in picture.versions:
        for instance, holding in version.holdings.items():
            known[instance].add(version.model)
            if holding.state is State.READY:
                ready[instance].add(version.model)
    counts: defaultdict[str, list[int]] = defaultdict(list)
    for plane in picture.planes.values():
        for instance, count in plane.draining.items():
            counts[instance].append(count)
    return [
        _Row(
            name,
            record,
            len(ready[name]),
            len(known[name]),
            picture.loads.get(name),
            sum(counts[name]) if counts[name] else None,
            sum(plane.instances.get(name, 0) for plane in picture.traffic.values()) if picture.traffic else None,
        )
        for name, record in picture.instances.items()
    ]


def _cells(row: _Row) -> list[str]:
    record, load = row.record, row.load
    return [
        row.name,
        record.state.lower(),
        f"{row.ready} of {row.known}",
        record.zone or "-",
        str(record.capacity),
        _in_flight(row),
        "-" if load is None else _figure(load.requests),
        "-" if load is None or not load.latency else _seconds(load.latency),
        "-" if load is None or load.queued is None else _figure(load.queued),
    ]


def _in_flight(row: _Row) -> str:
    if row.draining is not None:
        return f"{row.draining} to end"
    if row.load is not None:
        return _figure(row.load.in_flight)
    return "-" if row.by_envoys is None else str(row.by_envoys)


def _more(row: _Row) -> list[str]:
    record = row.record
    return [
        "-" if row.by_envoys is None else str(row.by_envoys),
        join_address(record.address, record.grpc_port),
        rest_address(record.address, record.rest_port),
        "-" if row.load is None else _figure(row.load.errors),
        record.monitor_version or "-",
        "yes" if record.managed else "no",
        f"{record.memory / 2**20:,.0f} MiB" if record.memory else "-",
        ",".join(f"{name}={value}" for name, value in record.labels.items()) or "-",
        _conditions(row),
        record.detail or "-",
    ]


def _conditions(row: _Row) -> str:
    return ", ".join(dict.fromkeys(condition.name for condition in row.record.conditions)) or "-"


def _figure(value: float) -> str:
    """A load is a mean of some seconds: what is below a hundredth says nothing, and would make the columns too wide."""
    return f"{round(value, 2):g}"


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def _document(row: _Row) -> dict[str, Any]:
    record, load = row.record, row.load
    figures = None
    if load is not None:
        figures = {
            "inFlight": load.in_flight,
            "requestsPerSecond": load.requests,
            "errorsPerSecond": load.errors,
            "latencySeconds": load.latency,
            "queued": load.queued,
        }
    return {
        "instance": row.name,
        "address": record.address,
        "grpcPort": record.grpc_port,
        "restPort": record.rest_port,
        "zone": record.zone,
        "capacity": record.capacity,
        "state": record.state,
        "detail": record.detail,
        "monitorVersion": record.monitor_version,
        "managed": record.managed,
        "labels": dict(record.labels),
        "memory": record.memory or None,
        "models": {"ready": row.ready, "known": row.known},
        "load": figures,
        "inFlightByEnvoys": row.by_envoys,
        "drainingInFlight": row.draining,
        "conditions": [{"name": condition.name, "text": condition.text} for condition in record.conditions],
    }
