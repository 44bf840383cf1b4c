"""Models and their versions as tables and as JSON, for `modelplane get`. Pure: what the registry says in, lines out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modelplane.fleet import Picture, State, Version
from modelplane.lines import Line, Tone, block
from modelplane.policies.view import PolicyView, told_instances, told_strategy, told_traffic, told_versions
from modelplane.policies.waiting import told_rollout
from modelplane.table import describe, listed
from registry.rollouts import Phase

_UNREADABLE = "unreadable"
_TONES = {Phase.DONE: Tone.PLAIN, Phase.FAILED: Tone.BAD, Phase.ROLLED_BACK: Tone.BAD, Phase.ROLLING_BACK: Tone.BAD}


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a head, each with its name, a tone, and what machines get of it. `notes`: lines below."""

    head: tuple[str, ...]
    rows: Mapping[str, tuple[tuple[str, ...], Tone]]
    documents: Mapping[str, dict[str, Any]]
    empty: str
    notes: tuple[Line, ...] = ()

    def lines(self) -> list[Line]:
        """As a table."""
        if not self.rows:
            return [Line(self.empty)]
        cells, tones = [row for row, _ in self.rows.values()], [tone for _, tone in self.rows.values()]
        return [*block(self.head, cells, tones)[1:], *self.notes]


def models(picture: Picture, view: PolicyView, name: str = "", *, wide: bool = False) -> Table:
    """A row for each model that has a policy or is known of an instance; `name`: only this one."""
    versions: dict[str, list[Version]] = {}
    for row in picture.versions:
        versions.setdefault(row.model, []).append(row)
    known = sorted({*view.kept, *versions} if not name else {name} & {*view.kept, *versions})
    head = ["MODEL", "GEN", "WANTED", "ON", "TRAFFIC", "SERVED", "READY", "ROLLOUT"]
    rows, documents, notes = {}, {}, []
    for model in known:
        kept = view.kept.get(model)
        policy = kept.policy if kept else None
        cells = [model, str(kept.stored.generation) if kept and kept.stored else "-"]
        if policy:
            cells += [told_versions(policy), told_instances(policy), told_traffic(policy)]
        else:
            cells += [_UNREADABLE if kept else "-", "-", "-"]
        cells += [_served(versions.get(model, [])), _ready(versions.get(model, [])), _phase(view, model)]
        if wide:
            stored = kept.stored if kept else None
            rollout = view.rollouts.get(model)
            cells += [
                policy.base_path or "-" if policy else "-",
                told_strategy(policy) if policy else "-",
                (stored.by or "-") if stored else "-",
                (stored.message or "-") if stored else "-",
                told_rollout(rollout) if rollout else "-",
            ]
        rows[model] = (tuple(cells), _tone(view, model))
        documents[model] = _document(picture, view, model, versions.get(model, []))
        if kept and kept.unreadable:
            notes.append(Line(f"{model}: its policy can't be read, so it counts as none: {kept.unreadable}", Tone.BAD))
    more = ["PATH", "STRATEGY", "BY", "MESSAGE", "DETAIL"] if wide else []
    below = (Line(""), Line("UNREADABLE"), *notes) if notes else ()
    return Table((*head, *more), rows, documents, "The registry knows no model and no policy.", below)


def versions(picture: Picture, view: PolicyView, name: str = "", *, wide: bool = False) -> Table:
    """A row for each version that an instance knows or that lies on a disk; `name`: only of this model."""
    head = ("MODEL", "VERSION", "TRAFFIC", "LABELS", "READY", "STATE")
    known = [row for row in picture.versions if name in ("", row.model)]
    held = {(row.model, row.version) for row in known}
    disks = {
        model: view.on_disk(model) for model in sorted({one for disk in view.disks.values() for one in disk.models})
    }
    known += [
        Version(model, version, served=False, holdings={})
        for model, found in disks.items()
        for version in found
        if name in ("", model) and (model, version) not in held
    ]
    rows, documents = {}, {}
    for row in sorted(known, key=lambda row: (row.model, -row.version)):
        disk = disks.get(row.model, {}).get(row.version, [])
        labels = _labels(view, row)
        share = _share(view, row)
        ready = sum(one.state is State.READY for one in row.holdings.values())
        key = f"{row.model}@{row.version}"
        cells = (row.model, str(row.version), share, ",".join(labels) or "-", f"{ready}/{len(row.holdings)}")
        rows[key] = ((*cells, _state(row, disk, wide=wide)), Tone.PLAIN if ready else Tone.WAITING)
        documents[key] = {
            "model": row.model,
            "version": row.version,
            "served": row.served,
            "traffic": share,
            "share": _part(view, row),
            "labels": labels,
            "ready": ready,
            "instances": {one: holding.state for one, holding in row.holdings.items()},
            "onDisk": disk,
        }
    empty = f"No instance knows a version of {name}." if name else "No instance knows a model."
    return Table(head, rows, documents, empty)


def _labels(view: PolicyView, row: Version) -> list[str]:
    traffic, kept = view.traffic.get(row.model), view.kept.get(row.model)
    labels = traffic.labels if traffic else (kept.policy.labels if kept and kept.policy else {})
    return [label for label, version in labels.items() if version == row.version]


def _state(row: Version, disk: list[str], *, wide: bool) -> str:
    if not row.holdings:
        return f"on disk of {listed(disk)}" if wide else "on disk only"
    return describe(row.holdings) if wide else _short(row)


def _share(view: PolicyView, row: Version) -> str:
    part = _part(view, row)
    return f"{100 * part:.3g}%" if part else "-"


def _part(view: PolicyView, row: Version) -> float:
    """Of the requests that name no version, 0 to 1."""
    traffic = view.traffic.get(row.model)
    if traffic is None:
        return float(row.served)
    return traffic.weights.get(row.version, 0) / sum(traffic.weights.values())


def _short(row: Version) -> str:
    """`ready 3, loading 1`."""
    counts = {state: sum(held.state is state for held in row.holdings.values()) for state in State}
    return ", ".join(f"{state} {count}" for state, count in counts.items() if count)


def _served(rows: list[Version]) -> str:
    return next((str(row.version) for row in rows if row.served), "-")


def _ready(rows: list[Version]) -> str:
    """Of the served version."""
    for row in rows:
        if row.served:
            return f"{sum(held.state is State.READY for held in row.holdings.values())}/{len(row.holdings)}"
    return "-"


def _phase(view: PolicyView, model: str) -> str:
    rollout, kept = view.rollouts.get(model), view.kept.get(model)
    paused = ", paused" if kept and kept.policy and kept.policy.paused else ""
    if rollout is None:
        return paused.removeprefix(", ") or "-"
    # A rollout that is at a halt is PAUSED by itself.
    paused = "" if rollout.phase is Phase.PAUSED else paused
    step = f" {rollout.step}/{rollout.steps}" if rollout.phase is Phase.STEPPING and rollout.steps else ""
    return f"{rollout.phase.lower().replace('_', ' ')}{step}{paused}"


def _tone(view: PolicyView, model: str) -> Tone:
    kept, rollout = view.kept.get(model), view.rollouts.get(model)
    if kept and kept.unreadable:
        return Tone.BAD
    return _TONES.get(rollout.phase, Tone.WAITING) if rollout else Tone.PLAIN


def _document(picture: Picture, view: PolicyView, model: str, rows: list[Version]) -> dict[str, Any]:
    kept, rollout, traffic = view.kept.get(model), view.rollouts.get(model), view.traffic.get(model)
    stored = kept.stored if kept else None
    document: dict[str, Any] = {"model": model, "policy": None, "error": None}
    if kept:
        document |= {"policy": dict(stored.document) if stored else None, "error": kept.unreadable or None}
    if stored:
        document |= {
            "generation": stored.generation,
            "at": stored.at,
            "by": stored.by,
            "message": stored.message,
        }
    document["versions"] = [
        {
            "version": row.version,
            "served": row.served,
            "instances": {one: held.state for one, held in row.holdings.items()},
        }
        for row in rows
    ]
    document["weights"] = {str(one): parts for one, parts in traffic.weights.items()} if traffic else None
    document["labels"] = dict(traffic.labels) if traffic else None
    document["rollout"] = (
        {
            "phase": rollout.phase,
            "fromVersion": rollout.from_version,
            "toVersion": rollout.to_version,
            "step": rollout.step,
            "steps": rollout.steps,
            "text": rollout.text,
            "generation": rollout.generation,
        }
        if rollout
        else None
    )
    return document
