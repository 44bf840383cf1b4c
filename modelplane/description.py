"""All about one model as lines of text. Pure: the registry's picture and the control planes' pages in, lines out."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelplane.envoys import refusals, unreachable
from modelplane.errors import UserError
from modelplane.fleet import Picture, State, Version
from modelplane.lines import Line, Tone, block
from modelplane.planes import Report
from modelplane.policies.told import told_policy
from modelplane.policies.view import PolicyView
from modelplane.quarantine import quarantine
from modelplane.table import conditions, listed, rest_address
from registry.addresses import join_address
from registry.records import InstanceRecord
from registry.traffic import TrafficRecord

_NOT_SAID = "-"


@dataclass(frozen=True, slots=True)
class Pages:
    """What the control planes told: `/quarantine` and `/envoys` of all, and of the first that answered the model's
    resources by type."""

    quarantine: Sequence[Report] = ()
    envoys: Sequence[Report] = ()
    resources: Mapping[str, Report] | None = None


def find(picture: Picture, model: str, policies: Collection[str] = ()) -> list[Version]:
    """The model's versions, newest first; none if all that is known of it is a condition, or its policy (`policies`:
    the models that have one). Raises UserError with close matches if the registry knows no such model."""
    versions = [row for row in picture.versions if row.model == model]
    if not (versions or model in policies or any(_about(record, model) for record in picture.instances.values())):
        known = sorted({*policies, *(row.model for row in picture.versions)})
        close = difflib.get_close_matches(model, known, n=3)
        knows = f"it knows {listed(known)}" if known else "it knows none"
        hint = f"did you mean {' or '.join(close)}?" if close else knows
        raise UserError(f"the registry knows no model {model!r}; {hint}")
    return versions


def describe(picture: Picture, model: str, pages: Pages, view: PolicyView | None = None) -> list[Line]:
    """The policy, versions, instances, reasons, clusters, and what was refused. Raises UserError for an unknown
    model."""
    versions = find(picture, model, view.kept if view else ())
    return [
        *_head(model, versions, pages.envoys, view.traffic.get(model) if view else None),
        *(told_policy(view, model) if view else ()),
        *_instances(picture, versions),
        *_reasons(versions),
        *_conditions(picture, model, versions),
        *_proofs(versions),
        *_clusters(pages),
        *quarantine(pages.quarantine, model),
        *_refusals(pages),
        *unreachable(pages.envoys),
    ]


def _head(
    model: str, versions: Sequence[Version], envoys: Iterable[Report], traffic: TrafficRecord | None
) -> list[Line]:
    served = next((row.version for row in versions if row.served), None)
    lines = [Line(f"MODEL {model}")]
    if served is None:
        lines.append(Line("No version is served: no instance answers for any.", Tone.BAD))
    else:
        drawn = {version: parts for version, parts in traffic.weights.items() if parts} if traffic else {}
        others = [str(row.version) for row in versions if not (row.served or row.version in drawn) and _ready(row)]
        also = f"; requests may name {listed(others)} too" if others else ""
        lines.append(Line(f"A request that names no version gets {_drawn(served, drawn)}{also}."))
        if not any(_ready(row) for row in versions if row.served):
            lines.append(Line(f"But no instance is ready for version {served}.", Tone.BAD))
    return lines + [_plane(report) for report in envoys if not report.error]


def _drawn(served: int, parts: Mapping[int, int]) -> str:
    """`version 3`, or by weight `version 3 (90%) or 4 (10%)`."""
    if len(parts) < 2:
        return f"version {served}"
    shares = (f"{version} ({100 * parts[version] / sum(parts.values()):.3g}%)" for version in sorted(parts))
    return f"version {' or '.join(shares)}"


def _plane(report: Report) -> Line:
    """How far one control plane's Envoys are, by its own revision: what etcd counts includes the replicas' own keys."""
    page = report.page
    streams, revision, converged = len(page["envoys"]), page["revision"], page["converged_revision"]
    said = f"Control plane {page['replica']}, {streams} connected:"
    if converged >= revision:
        return Line(f"{said} all acknowledged up to revision {revision}.")
    return Line(f"{said} acknowledged up to revision {converged} of {revision}.", Tone.WAITING)


def _ready(row: Version) -> bool:
    return any(held.state in (State.READY, State.SUSPECT) for held in row.holdings.values())


def _instances(picture: Picture, versions: Sequence[Version]) -> list[Line]:
    if not versions:
        return []
    rows, tones = [], []
    for row in versions:
        for name, held in row.holdings.items():
            record = picture.instances.get(name)
            where = (
                (join_address(record.address, record.grpc_port), rest_address(record.address, record.rest_port))
                if record
                else (_NOT_SAID, _NOT_SAID)
            )
            rows.append((str(row.version), "yes" if row.served else "", name, str(held.state), *where))
            tones.append(_TONES.get(held.state, Tone.WAITING))
        if not row.holdings:
            rows.append((str(row.version), "yes" if row.served else "", _NOT_SAID, "announced", _NOT_SAID, _NOT_SAID))
            tones.append(Tone.WAITING)
    return block(("VERSION", "SERVED", "INSTANCE", "STATE", "GRPC", "REST"), rows, tones)


_TONES = {State.READY: Tone.PLAIN, State.FAILED: Tone.BAD, State.FAILING: Tone.BAD}


def _reasons(versions: Sequence[Version]) -> list[Line]:
    lines = []
    for row in versions:
        same: dict[str, list[str]] = {}
        for name, held in row.holdings.items():
            if held.reason and held.state is not State.READY:
                same.setdefault(held.reason, []).append(name)
        lines += [Line(f"version {row.version} on {listed(names)}: {why}") for why, names in same.items()]
    return [Line(""), Line("NOT READY"), *lines] if lines else []


def _about(record: InstanceRecord, model: str) -> bool:
    return any(condition.model == model for condition in record.conditions)


def _conditions(picture: Picture, model: str, versions: Sequence[Version]) -> list[Line]:
    """Those about the model, and those that are about all models of an instance that holds it."""
    holders = {name for row in versions for name in row.holdings}
    said = conditions(picture, lambda name, one: one.model == model or (not one.model and name in holders))
    lines = [Line(line, Tone.BAD) for line in said]
    return [Line(""), Line("CONDITIONS"), *lines] if lines else []


def _proofs(versions: Sequence[Version]) -> list[Line]:
    """What is known of those that answer: an answer with NaN in it is one, too."""
    lines = []
    for row in versions:
        same: dict[str, list[str]] = {}
        for name, held in row.holdings.items():
            if held.proof:
                same.setdefault(held.proof, []).append(name)
        lines += [Line(f"version {row.version} on {listed(names)}: {proof}") for proof, names in same.items()]
    return [Line(""), Line("PROOF"), *lines] if lines else []


def _clusters(pages: Pages) -> list[Line]:
    if pages.resources is None:
        return []
    clusters, assignments = (pages.resources[name].page for name in ("CDS", "EDS"))
    endpoints = {one["name"]: one for one in assignments["resources"]}
    rows = [
        (
            one["name"],
            one["version"],
            endpoints[one["name"]]["version"] if one["name"] in endpoints else _NOT_SAID,
            _endpoints(endpoints.get(one["name"], {}).get("resource", {})),
        )
        for one in clusters["resources"]
    ]
    return block(("CLUSTER", "CDS VERSION", "EDS VERSION", "ENDPOINTS"), rows) if rows else []


def _endpoints(assignment: Mapping[str, Any]) -> str:
    counts = Counter(
        str(endpoint.get("health_status", "HEALTHY")).lower()
        for locality in assignment.get("endpoints", ())
        for endpoint in locality.get("lb_endpoints", ())
    )
    return ", ".join(f"{count} {health}" for health, count in sorted(counts.items())) or "none"


def _refusals(pages: Pages) -> list[Line]:
    """What single Envoys do not take; others may."""
    if pages.resources is None:
        return []
    own = {(kind, one["name"]) for kind, report in pages.resources.items() for one in report.page["resources"]}

    def about_it(stream: Mapping[str, Any]) -> Mapping[str, Any]:
        types = {
            kind: {**one, "refused": [row for row in one["refused"] if (kind, row["name"]) in own]}
            for kind, one in stream["types"].items()
        }
        return {**stream, "types": types}

    return refusals(about_it(stream) for report in pages.envoys for stream in report.page.get("envoys", ()))
