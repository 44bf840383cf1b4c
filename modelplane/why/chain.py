"""From a policy to who answers, step by step. Pure: facts and the control planes' pages in, steps out."""

from __future__ import annotations

import difflib
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from control_plane.model import Health, Model
from control_plane.resources.names import grpc_cluster
from modelplane.errors import UserError
from modelplane.lines import Line, Tone
from modelplane.planes import Report
from modelplane.policies.view import Kept, told_instances, told_strategy, told_traffic, told_versions
from modelplane.policies.waiting import told_rollout
from modelplane.table import clean, listed
from modelplane.why.facts import Facts
from modelplane.why.instances import Place, grouped, places
from registry.keys import AssignmentKey, RolloutKey, TrafficKey
from registry.policy.model import Policy
from registry.rollouts import Phase

WIDTH = 80
_NAMES = 11
_NOTHING_NEW = (Health.DRAINING, Health.UNANSWERED)


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked about: `version` as it was named, or None; `label` likewise."""

    model: str
    version: int | None = None
    label: str = ""

    def __str__(self) -> str:
        version = "" if self.version is None else f"@{self.version}"
        return f"{self.model}{version}{f':{self.label}' if self.label else ''}"


@dataclass(frozen=True, slots=True)
class Step:
    """One link of the chain."""

    name: str
    texts: tuple[str, ...]
    bad: bool = False


@dataclass(frozen=True, slots=True)
class Pages:
    """What control planes told: the first that answered of the model's resources by type (None: nobody), and all of
    what is quarantined."""

    resources: Mapping[str, Report] | None = None
    quarantine: Sequence[Report] = ()
    asked: bool = False


@dataclass(frozen=True, slots=True)
class Chain:
    """The whole: `version` is the one that is explained; `answered`: whether a request for the target is."""

    target: Target
    version: int | None
    steps: tuple[Step, ...]
    places: tuple[Place, ...]
    answered: bool
    answer: str = field(default="")

    def lines(self) -> list[Line]:
        """For people, no line wider than WIDTH unless a word is."""
        lines = []
        for step in self.steps:
            lines += _wrapped(step.name, step.texts, Tone.BAD if step.bad else Tone.PLAIN)
        return lines + _wrapped("ANSWER", (self.answer,), Tone.PLAIN if self.answered else Tone.BAD)

    def document(self) -> dict[str, Any]:
        """For machines."""
        return {
            "model": self.target.model,
            "version": self.version,
            "label": self.target.label or None,
            "answered": self.answered,
            "answer": self.answer,
            "steps": [{"step": one.name.lower(), "ok": not one.bad, "text": list(one.texts)} for one in self.steps],
            "instances": [
                {"instance": one.instance, "state": one.state, "reason": one.reason, "used": one.used}
                for one in self.places
            ],
        }


def read_target(facts: Facts, text: str) -> Target:
    """`MODEL`, `MODEL@VERSION` or `MODEL:LABEL`; a model that has such a name goes first. Raises UserError with close
    matches if the registry knows none of them."""
    known = facts.models()
    if text in known:
        return Target(text)
    model, at, version = text.rpartition("@")
    if at and version.isascii() and version.isdigit() and len(version) < 20:
        target = Target(model, int(version))
    else:
        model, colon, label = text.rpartition(":")
        target = Target(model, label=label) if colon and label else Target(text)
    if target.model not in known:
        close = difflib.get_close_matches(target.model, known, n=3)
        some = f"it knows {listed(sorted(known))}" if known else "it knows none"
        hint = f"did you mean {' or '.join(close)}?" if close else some
        raise UserError(f"the registry knows no model {target.model!r}; {hint}")
    return target


def explain(facts: Facts, target: Target, pages: Pages) -> Chain:
    """All steps."""
    kept = facts.policies.kept.get(target.model)
    policy = kept.policy if kept is not None else None
    model = facts.catalog.models.get(target.model)
    version, label = _labelled(facts, target, policy) if target.label else (target.version, None)
    if version is None and not target.label:
        version = _in_question(facts, target.model, policy, model)
    found = () if version is None else tuple(places(facts, target.model, version, policy))
    steps = [
        _policy(kept, facts, target.model),
        *_unreadable(facts, target.model),
        *([] if label is None else [label]),
        *([] if policy is None else _wanted(facts, policy, version)),
        *([] if policy is None else [_leader(facts)]),
        *_rollout(facts, target.model),
        _instances(version, found),
        _traffic(facts, target.model, model),
        *_clusters(target.model, version, pages),
    ]
    answered, answer = _answer(target, version, model)
    return Chain(target, version, tuple(steps), found, answered, answer)


def _policy(kept: Kept | None, facts: Facts, model: str) -> Step:
    if kept is None:
        return Step("POLICY", ("none: modelplane neither loads nor unloads it, and routes to whoever has it",))
    if kept.policy is None or kept.stored is None:
        return Step("POLICY", (f"it can't be read, so it counts as none: {kept.unreadable}",), bad=True)
    stored, policy = kept.stored, kept.policy
    at = datetime.fromtimestamp(stored.at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    message = f", {stored.message!r}" if stored.message else ""
    where = f"under {policy.base_path}, on {told_instances(policy)}" if policy.base_path else "not loaded by modelplane"
    return Step(
        "POLICY",
        (
            f"generation {stored.generation}, by {stored.by or 'nobody knows whom'}, {at}{message}",
            f"versions: {told_versions(policy)}, {where}; traffic: {told_traffic(policy)}; {told_strategy(policy)}",
        ),
    )


def _unreadable(facts: Facts, model: str) -> list[Step]:
    """What somebody wrote over the leader's own records. The leader writes them again, so these have stood since it
    last had a say."""
    told = []
    for raw, error in sorted(facts.unreadable.items()):
        match facts.keyspace.parse(raw):
            case TrafficKey(name) | RolloutKey(name) if name == model:
                told.append(f"{raw}: {error}")
            case AssignmentKey():
                told.append(f"{raw}: {error}")
    if not told:
        return []
    more = "can't be read; what was there before holds for those who knew it, until the leader writes it again"
    return [Step("UNREADABLE", (*told, more), bad=True)]


def _labelled(facts: Facts, target: Target, policy: Policy | None) -> tuple[int | None, Step]:
    traffic = facts.policies.traffic.get(target.model)
    routed = traffic.labels.get(target.label) if traffic is not None else None
    wanted = policy.labels.get(target.label) if policy is not None else None
    if routed is not None:
        texts = [f"{target.label} is version {routed}; the routers say so to the servers"]
        if wanted != routed:
            texts.append(
                f"the policy wants version {wanted}, which is not ready"
                if wanted is not None
                else "the policy names it no more; the leader has not taken it away yet"
            )
        return routed, Step("LABEL", tuple(texts), bad=wanted != routed)
    if wanted is not None:
        text = f"the policy says that {target.label} is version {wanted}; the routers learn it once that is ready"
        return wanted, Step("LABEL", (text,), bad=True)
    labels = sorted({*(traffic.labels if traffic else ()), *(policy.labels if policy else ())})
    known = f"labels are {', '.join(labels)}" if labels else "it has no labels"
    text = f"the policy does not name {target.label} ({known}), so each server decides by its own labels"
    return None, Step("LABEL", (text,), bad=True)


def _in_question(facts: Facts, name: str, policy: Policy | None, model: Model | None) -> int | None:
    """The version to explain where none is named: where the rollout goes, else what answers, else what is wanted."""
    rollout = facts.policies.rollouts.get(name)
    if rollout is not None and rollout.to_version is not None and rollout.phase is not Phase.DONE:
        return rollout.to_version
    if model is not None and model.served is not None:
        return model.served
    chosen = _chosen(facts, policy) if policy is not None else ()
    return max(chosen, default=max((version for version, _ in model.versions), default=None) if model else None)


def _on_disk(facts: Facts, policy: Policy) -> Counter[int]:
    """How many instances have each version."""
    found = (disk.models.get(policy.name) for disk in facts.disks.values())
    return Counter(v for one in found if one is not None and one.base_path == policy.base_path for v in one.versions)


def _chosen(facts: Facts, policy: Policy) -> Sequence[int]:
    """What the policy chooses of what there is, newest first, but for what was refused."""
    rollout = facts.policies.rollouts.get(policy.name)
    refused = rollout.refused if rollout is not None else ()
    there = set(_on_disk(facts, policy)) | {key.version for key in facts.ready if key.model == policy.name}
    rest = sorted(there - set(refused), reverse=True)
    if policy.versions.specific:
        return sorted(policy.versions.specific, reverse=True)
    return rest if policy.versions.all else rest[: policy.versions.latest or 1]


def _wanted(facts: Facts, policy: Policy, version: int | None) -> list[Step]:
    chosen, counts = _chosen(facts, policy), _on_disk(facts, policy)
    steps = []
    if policy.base_path:
        there = ", ".join(f"{one} on {counts[one]}" for one in sorted(counts, reverse=True)[:5])
        rest = len(counts) - 5
        more = f" and {rest} more version{'s' * (rest > 1)}" if rest > 0 else ""
        told = f"{there}{more} of {len(facts.instances)} instances"
        steps.append(
            Step("DISK", (told if there else f"no instance tells of a version under {policy.base_path}",), not there)
        )
    rollout = facts.policies.rollouts.get(policy.name)
    refused = rollout.refused if rollout is not None else ()
    texts = [", ".join(map(str, chosen)) or "nothing, for there is no version"]
    bad = not chosen
    if version is not None and version not in chosen and version not in policy.named_versions:
        why = "a canary took it back; it is tried again when the policy changes" if version in refused else "not wanted"
        texts.append(f"version {version} is not among them: {why}")
        bad = True
    elif version is not None and version not in chosen:
        texts.append(f"version {version} stays, for labels, weights or the mirror name it")
    return [*steps, Step("WANTED", tuple(texts), bad)]


def _leader(facts: Facts) -> Step:
    if facts.leader is None:
        return Step(
            "LEADER", ("no control plane leads: what was decided last holds, and nothing is decided",), bad=True
        )
    return Step("LEADER", (facts.leader.replica,))


def _rollout(facts: Facts, model: str) -> Iterable[Step]:
    record = facts.policies.rollouts.get(model)
    if record is not None:
        bad = record.phase in (Phase.FAILED, Phase.ROLLED_BACK, Phase.ROLLING_BACK)
        yield Step("ROLLOUT", (told_rollout(record),), bad)


def _instances(version: int | None, found: Sequence[Place]) -> Step:
    if version is None:
        return Step("INSTANCES", ("there is no version to look for",), bad=True)
    if not found:
        return Step("INSTANCES", (f"no instance has to do with version {version}",), bad=True)
    used = sum(one.used for one in found)
    texts = [f"{used} of {len(found)} are used for version {version}"]
    texts += [
        f"{listed(names)}: {one.state}{f': {one.reason}' if one.reason else ''}" for one, names in grouped(list(found))
    ]
    return Step("INSTANCES", tuple(texts), bad=not used)


def _traffic(facts: Facts, name: str, model: Model | None) -> Step:
    record = facts.policies.traffic.get(name)
    if model is None or model.served is None:
        return Step("TRAFFIC", ("nobody answers for any version",), bad=True)
    if record is None or model.traffic is None:
        how = "the routers write it into the request" if model.pinned else "the servers choose it themselves"
        text = f"requests that name no version get version {model.served}, which most instances have; {how}"
        return Step("TRAFFIC", (text,))
    wanted = {version: parts for version, parts in record.weights.items() if parts}
    able = dict(model.traffic.weights)
    texts = [f"as resolved from generation {record.generation} of the policy"]
    if not able:
        named = " ".join(f"{version}={parts}" for version, parts in sorted(wanted.items()))
        return Step("TRAFFIC", (*texts, f"none of the versions with a weight ({named}) has an endpoint"), bad=True)
    shares = [f"{100 * parts / sum(able.values()):.3g} % to version {version}" for version, parts in able.items()]
    by = f", by {record.sticky_by}" if record.sticky_by else ""
    texts.append(f"requests that name no version: {', '.join(shares)}{by if len(able) > 1 else ''}")
    missing = sorted(wanted.keys() - able.keys())
    if missing:
        texts.append(f"version {', '.join(map(str, missing))} has a weight, but no endpoint: the others get its share")
    for mirror in record.mirrors:
        to = mirror.model if mirror.version is None else f"{mirror.model}@{mirror.version}"
        texts.append(f"{mirror.percent:g} % are copied to {to}")
    return Step("TRAFFIC", tuple(texts), bad=bool(missing))


def _clusters(model: str, version: int | None, pages: Pages) -> Iterable[Step]:
    """What the control planes send to Envoys for the model and the version."""
    if not pages.asked:
        return
    if pages.resources is None:
        yield Step("CLUSTERS", ("no control plane answers; Envoys keep what they have",), bad=True)
        return
    names = [grpc_cluster(model), *([] if version is None else [grpc_cluster(model, version)])]
    defined = {one["name"] for one in pages.resources["CDS"].page["resources"]}
    endpoints = {one["name"]: one.get("resource", {}) for one in pages.resources["EDS"].page["resources"]}
    texts = [
        f"{name}: {_endpoints(endpoints.get(name, {}))}" if name in defined else f"{name}: there is no such cluster"
        for name in names
    ]
    yield Step("CLUSTERS", tuple(texts), bad=not any(name in defined for name in names))
    refused = [
        row for report in pages.quarantine for row in report.page.get("quarantined", ()) if row["model"] == model
    ]
    if refused:
        said = dict.fromkeys(f"{row['type']} {row['name']}: {row['message']}" for row in refused)
        yield Step("QUARANTINE", ("an Envoy refused what was sent; the last good version holds", *said), bad=True)


def _endpoints(assignment: Mapping[str, Any]) -> str:
    counts = Counter(
        str(endpoint.get("health_status", "HEALTHY")).lower()
        for locality in assignment.get("endpoints", ())
        for endpoint in locality.get("lb_endpoints", ())
    )
    return ", ".join(f"{count} {health}" for health, count in sorted(counts.items())) or "no endpoints"


def _answer(target: Target, version: int | None, model: Model | None) -> tuple[bool, str]:
    """What happens to a request for the target."""
    if model is None:
        return False, f"NOT_FOUND: no instance has model {target.model}"
    asked = version if target.version is not None or target.label else None
    if target.label and version is None:
        return False, "each server answers by its own labels: INVALID_ARGUMENT, where it has none of that name"
    if asked is None and model.traffic is not None:
        versions = [one for one, _ in model.traffic.weights]
    else:
        versions = [one for one in (asked if asked is not None else model.served,) if one is not None]
    held = {one.instance for wanted in versions for one in model.endpoints(wanted) if one.health not in _NOTHING_NEW}
    if held:
        named = f"version {' or '.join(map(str, versions))}"
        return True, f"a request for {target} is answered with {named} by {listed(sorted(held))}"
    if asked is not None and asked not in dict(model.versions):
        return False, f"NOT_FOUND: no instance has version {asked} of model {target.model}"
    return False, f"UNAVAILABLE: no instance is ready for {target}"


def _wrapped(name: str, texts: Sequence[str], tone: Tone) -> list[Line]:
    lines: list[Line] = []
    for text in texts:
        pieces = textwrap.wrap(
            clean(text), WIDTH - _NAMES, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
        for piece in pieces or [""]:
            lines.append(Line(f"{name if not lines else '':<{_NAMES}}{piece}".rstrip(), tone))
    return lines
