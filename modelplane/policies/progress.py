"""How far a model's rollout is, as lines and as JSON. Pure: what the registry says in.

Invariant: a canary's figures are those that its record holds, by which it was decided; they may be some seconds old.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from control_plane.planning.gates import seconds
from control_plane.planning.seen import seen
from modelplane.errors import UserError
from modelplane.fleet import Picture, State
from modelplane.lines import Line, Tone, block
from modelplane.policies.view import PolicyView, told_strategy
from modelplane.policies.waiting import FOR_LEADER, FOR_PLANE, Verdict, told_rollout
from modelplane.table import clean, listed
from registry.plane_traffic import VersionTotals, quantile
from registry.policy.model import Canary, Policy
from registry.rollouts import Phase, RolloutRecord

_WIDTH = 80
_QUANTILE = 0.99
_ENDS = {Phase.DONE: Verdict.DONE, Phase.FAILED: Verdict.FAILED, Phase.ROLLED_BACK: Verdict.FAILED}
_TONES = {Verdict.DONE: Tone.PLAIN, Verdict.FAILED: Tone.BAD, Verdict.WAITING: Tone.WAITING}


@dataclass(frozen=True, slots=True)
class Progress:
    """`head`: in a line, without figures; it changes with the phase and the step. `troubles`: a line for each reason
    why instances are not ready, and the names of these."""

    verdict: Verdict
    head: str
    lines: tuple[Line, ...]
    document: Mapping[str, Any]
    troubles: tuple[str, ...] = ()


def progress(model: str, picture: Picture, view: PolicyView) -> Progress:
    """Of one model. Raises UserError where it has no policy, or one that can't be read."""
    kept = view.kept.get(model)
    if kept is None:
        raise UserError(f"model {model!r} has no policy, so nothing is rolled out; `modelplane apply` gives it one")
    if kept.policy is None or kept.stored is None:
        raise UserError(f"the policy of model {model!r} can't be read: {kept.unreadable}")
    record, generation = view.rollouts.get(model), kept.stored.generation
    if record is None or record.generation < generation:
        said = f"generation {generation} of the policy {FOR_LEADER}" if picture.planes else FOR_PLANE
        traffic = view.traffic.get(model)
        routed = not kept.policy.base_path and traffic is not None and traffic.generation >= generation
        verdict = Verdict.DONE if routed and record is None else Verdict.WAITING
        said = "its traffic is as wanted" if verdict is Verdict.DONE else said
        head = f"{model}: {said}"
        document = {**_document(model, generation, verdict, None, {}), "text": said}
        return Progress(verdict, head, (Line(head, _TONES[verdict]),), document)
    verdict = _ENDS.get(record.phase, Verdict.WAITING)
    head = f"{model}: {told_strategy(kept.policy)}: {_head(record)}"
    rows = _rows(model, record, kept.policy, picture, view)
    troubles = _troubles(model, picture, rows)
    told = [f"version {version} on {listed(names)}: {why}" for version, why, names in troubles]
    lines = [Line(head, _TONES[verdict]), *_text(record)]
    if verdict is Verdict.WAITING and not picture.planes:
        lines += [Line("  it stands still:", Tone.BAD), Line(f"  {FOR_PLANE}", Tone.BAD)]
    lines += [*_table(rows), *_not_ready(told), *_gates(record), *_refused(record)]
    document = _document(model, generation, verdict, record, rows)
    document["notReady"] = [{"version": version, "instances": names, "reason": why} for version, why, names in troubles]
    return Progress(verdict, head, tuple(lines), document, tuple(f"{model}: {one}" for one in told))


def _troubles(model: str, picture: Picture, rows: Mapping[int, object]) -> list[tuple[int, str, list[str]]]:
    """Of each version: why it is not ready, as the servers tell it, and on which instances. Between two tries a server
    tells nothing, for it was told to forget the version; then its monitor's condition does."""
    same: dict[tuple[int, str], list[str]] = {}
    for version in rows:
        held = next((row.holdings for row in picture.versions if (row.model, row.version) == (model, version)), {})
        for instance, record in picture.instances.items():
            holding = held.get(instance)
            why = holding.reason if holding is not None else ""
            if holding is None or (holding.state is not State.READY and not why):
                named = f"version {version}:"
                texts = (one.text for one in record.conditions if one.model == model and named in one.text)
                why = next((text.partition(named)[2].strip() for text in texts), "")
            if why and (holding is None or holding.state is not State.READY):
                same.setdefault((version, why), []).append(instance)
    return [(version, why, names) for (version, why), names in same.items()]


def _not_ready(said: Sequence[str]) -> list[Line]:
    lines = [
        Line(f"  {piece}", Tone.BAD)
        for one in said
        for piece in textwrap.wrap(clean(one), _WIDTH - 2, subsequent_indent="  ", break_on_hyphens=False)
    ]
    return [Line(""), Line("NOT READY"), *lines] if lines else []


def _head(record: RolloutRecord) -> str:
    text = told_rollout(record)
    # The record's own text follows by itself.
    return text.removesuffix(f": {record.text}") if record.text else text


def _text(record: RolloutRecord) -> list[Line]:
    since = datetime.fromtimestamp(record.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    pieces = textwrap.wrap(clean(record.text), _WIDTH - 2, break_long_words=False, break_on_hyphens=False)
    return [Line(f"  since {since}"), *(Line(f"  {piece}") for piece in pieces)]


def _rows(
    model: str, record: RolloutRecord, policy: Policy, picture: Picture, view: PolicyView
) -> dict[int, dict[str, Any]]:
    """By version, those that the rollout is about and those with traffic."""
    traffic = view.traffic.get(model)
    weights = dict(traffic.weights) if traffic is not None else {}
    counted = seen(record) if isinstance(policy.rollout, Canary) else {}
    ends = {version for version in (record.from_version, record.to_version) if version is not None}
    rows: dict[int, dict[str, Any]] = {}
    for version in sorted({*weights, *ends}):
        held = next((row.holdings for row in picture.versions if (row.model, row.version) == (model, version)), {})
        totals = counted.get(version)
        rows[version] = {
            "share": weights.get(version, 0) / max(1, sum(weights.values())),
            "ready": sum(one.state is State.READY for one in held.values()),
            "instances": len(held),
            "step": None if totals is None else _figures(totals),
        }
    return rows


def _figures(totals: VersionTotals) -> dict[str, Any]:
    return {
        "requests": totals.requests,
        "errors": totals.errors,
        "observed": totals.observed,
        "notOk": totals.observed_errors,
        "p99Seconds": quantile(totals.latency, _QUANTILE),
        "compared": totals.compared,
        "differed": totals.differed,
    }


def _table(rows: Mapping[int, Mapping[str, Any]]) -> list[Line]:
    figures = any(row["step"] is not None for row in rows.values())
    head = ["VERSION", "TRAFFIC", "READY", *(["REQUESTS", "ERRORS", "NOT OK", "P99", "DIFFERED"] if figures else [])]
    cells = []
    for version, row in rows.items():
        cell = [str(version), f"{row['share']:.3%}".replace(".000%", "%"), f"{row['ready']}/{row['instances']}"]
        cells.append(cell + _cells(row["step"] or _figures(VersionTotals())) if figures else cell)
    return block(head, cells) if rows else []


def _cells(step: Mapping[str, Any]) -> list[str]:
    p99 = step["p99Seconds"]
    return [
        f"{step['requests']:,}",
        f"{step['errors']:,}",
        f"{step['notOk']:,} of {step['observed']:,}" if step["observed"] else "-",
        "-" if p99 is None else seconds(p99),
        f"{step['differed']:,} of {step['compared']:,}" if step["compared"] else "-",
    ]


def _gates(record: RolloutRecord) -> list[Line]:
    gates = record.observed.get("gates", ())
    if record.phase not in (Phase.STEPPING, Phase.PAUSED) or not gates:
        return []
    lines = [Line(""), Line("GATES")]
    for gate in gates:
        pieces = textwrap.wrap(clean(str(gate)), _WIDTH - 2, subsequent_indent="  ", break_on_hyphens=False)
        lines += [Line(f"  {piece}") for piece in pieces]
    return lines


def _refused(record: RolloutRecord) -> list[Line]:
    if not record.refused:
        return []
    named = ", ".join(map(str, record.refused))
    return [Line(""), Line(f"Taken back, and not tried again before the policy changes: version {named}.")]


def _document(
    model: str,
    generation: int,
    verdict: Verdict,
    record: RolloutRecord | None,
    rows: Mapping[int, Mapping[str, Any]],
) -> dict[str, Any]:
    told: dict[str, Any] = {"model": model, "generation": generation, "state": verdict.value, "phase": None}
    if record is None:
        return told
    return {
        **told,
        "phase": record.phase.value,
        "fromVersion": record.from_version,
        "toVersion": record.to_version,
        "step": record.step,
        "steps": record.steps,
        "since": record.since,
        "text": record.text,
        "gates": list(record.observed.get("gates", ())),
        "refused": list(record.refused),
        "versions": {str(version): dict(row) for version, row in rows.items()},
    }
