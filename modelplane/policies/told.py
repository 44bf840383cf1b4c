"""The policy of one model as lines of text, for `describe model`. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterator

from modelplane.lines import Line, Tone
from modelplane.policies.view import Kept, PolicyView, told_instances, told_strategy, told_traffic, told_versions
from modelplane.policies.waiting import told_rollout
from registry.policy.model import Policy
from registry.policy.write import document_of, spell_duration

_WIDTH = 12


def told_policy(view: PolicyView, model: str) -> list[Line]:
    """What is wanted, who wanted it, when and why; how far it is. None: no lines."""
    kept, rollout, traffic = view.kept.get(model), view.rollouts.get(model), view.traffic.get(model)
    lines = list(_kept(kept)) if kept else []
    if traffic is not None:
        parts = " ".join(f"{version}={weight}" for version, weight in sorted(traffic.weights.items()))
        sticky = f", sticky by {traffic.sticky_by}" if traffic.sticky_by else ""
        lines.append(_line("answering", f"{parts}{sticky} (of generation {traffic.generation})"))
    if rollout is not None:
        lines.append(_line("rollout", f"{told_rollout(rollout)} (of generation {rollout.generation})"))
        if rollout.refused:
            lines.append(_line("refused", f"versions {', '.join(map(str, rollout.refused))}", Tone.BAD))
    return [Line(""), Line("POLICY"), *lines] if lines else []


def _kept(kept: Kept) -> Iterator[Line]:
    if kept.stored is not None:
        at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(kept.stored.at)) if kept.stored.at else "-"
        by = f" by {kept.stored.by}" * bool(kept.stored.by)
        why = f": {kept.stored.message}" * bool(kept.stored.message)
        yield _line("generation", f"{kept.stored.generation}, {at}{by}{why}")
    if kept.unreadable:
        yield _line("unreadable", f"it counts as none: {kept.unreadable}", Tone.BAD)
    if kept.policy is not None:
        yield from (_line(name, text) for name, text in _wanted(kept.policy))


def _wanted(policy: Policy) -> Iterator[tuple[str, str]]:
    yield "path", policy.base_path or "none: modelplane only routes it"
    yield "versions", told_versions(policy)
    yield "instances", told_instances(policy)
    yield "traffic", told_traffic(policy)
    yield "strategy", told_strategy(policy)
    if policy.labels:
        yield "labels", " ".join(f"{label}={version}" for label, version in policy.labels.items())
    if policy.mirror:
        version = f"@{policy.mirror.version}" if policy.mirror.version is not None else ""
        yield "mirror", f"{policy.mirror.percent:g}% to {policy.mirror.model}{version}"
    limits = {
        "timeout": spell_duration(policy.timeout),
        "retries": policy.retries,
        "balancing": policy.balancing,
    }
    others = document_of(policy)["spec"]
    limits |= {name: others.get(name) for name in ("circuitBreaking", "outlierDetection", "maxRequestBytes", "warmUp")}
    said = [f"{name} {_flat(value)}" for name, value in limits.items() if value is not None]
    if said:
        yield "limits", ", ".join(said)


def _flat(value: object) -> str:
    return " ".join(f"{key}={one}" for key, one in value.items()) if isinstance(value, dict) else str(value)


def _line(name: str, text: str, tone: Tone = Tone.PLAIN) -> Line:
    return Line(f"{name:<{_WIDTH}}{text}", tone)
