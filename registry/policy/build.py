"""Typed values out of fields that were allowed each for itself; here is checked what they say together.

Each function takes the fields that are there, the path of their object, and the problems found, to which it adds; what
it returns counts only if there are none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

from registry.policy.model import (
    Canary,
    CircuitBreaking,
    Difference,
    Gates,
    OutlierDetection,
    Policy,
    Rolling,
    Rollout,
    Step,
    Versions,
)
from registry.policy.shapes import Leaf, Path, Problem, spell
from registry.traffic import Mirror

Values = dict[str, Any]
Problems = list[Problem]


class Strategy(StrEnum):
    """How a new version takes over."""

    ROLLING = "rolling"
    CANARY = "canary"


_OF_STRATEGY = {"maxLoading": Strategy.ROLLING, "switchAt": Strategy.ROLLING} | {
    "steps": Strategy.CANARY,
    "gates": Strategy.CANARY,
}


def version_key(largest: int) -> Leaf:
    """A version as the key of an object: JSON's keys are strings."""
    digits = re.compile(r"0|[1-9][0-9]{0,18}")

    def convert(value: Any) -> int:
        if not isinstance(value, str) or not digits.fullmatch(value) or int(value) > largest:
            raise ValueError
        return int(value)

    schema = {"type": "string", "pattern": f"^(?:{digits.pattern})$"}
    return Leaf(f"a version from 0 to {largest}", schema, convert)


def _sticky_by(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_.\-]{1,128}", value):
        raise ValueError
    name = value.lower()
    if name.startswith("x-modelplane-"):
        raise ValueError("x-modelplane- are modelplane's own")
    return name


STICKY_BY = Leaf(
    "a header: 1 to 128 letters, digits and _ . -",
    {"type": "string", "pattern": r"^[A-Za-z0-9_.\-]{1,128}$"},
    _sticky_by,
)


def only(name: str) -> Callable[[Values, Path, Problems], Any]:
    """The object's one field."""
    return lambda values, path, problems: values.get(name)


def versions(values: Values, path: Path, problems: Problems) -> Versions:
    """Exactly one way to choose."""
    if len(values) > 1:
        chosen = " and ".join(values)
        problems.append(Problem(path, f"{chosen} can't both hold; it must be one of latest, all and specific"))
    elif not values and not any(_within(path, problem) for problem in problems):
        problems.append(Problem(path, "it is empty; it must have one of latest, all and specific"))
    specific = values.get("specific", ())
    twice = sorted({one for one in specific if specific.count(one) > 1})
    if twice:
        problems.append(Problem((*path, "specific"), f"version {twice[0]} is there twice; each version may be once"))
    if "all" in values:
        return Versions(latest=None, all=True)
    return Versions(None, specific=tuple(sorted(specific))) if specific else Versions(values.get("latest", 1))


def instances(values: Values, path: Path, problems: Problems) -> Values:
    """As they are."""
    return values


def traffic(values: Values, path: Path, problems: Problems) -> Values:
    """Either the newest or weights."""
    weights = values.get("weights")
    if weights is not None and "follow" in values:
        problems.append(Problem(path, "follow and weights can't both hold; leave one of them out"))
    if weights is not None and not sum(weights.values()):
        problems.append(Problem((*path, "weights"), "no version gets any traffic; one weight must be more than 0"))
    return values


def mirror(values: Values, path: Path, problems: Problems) -> Values:
    """Somewhere to."""
    if not values.keys() & {"version", "model"} and not any(_within(path, problem) for problem in problems):
        problems.append(Problem(path, "it says not where to; it must have version, model or both"))
    return values


def circuit_breaking(values: Values, path: Path, problems: Problems) -> CircuitBreaking:
    """Typed."""
    return CircuitBreaking(values.get("maxRequests"), values.get("maxConnections"))


def outlier_detection(values: Values, path: Path, problems: Problems) -> OutlierDetection:
    """Typed."""
    return OutlierDetection(*map(values.get, ("consecutiveErrors", "ejectionTime", "maxEjectionPercent")))


def step(values: Values, path: Path, problems: Problems) -> Step:
    """Typed."""
    return Step(values.get("percent", 0.0), values.get("duration"), values.get("requests"))


def latency(values: Values, path: Path, problems: Problems) -> Values:
    """With its defaults."""
    return {"quantile": 0.99, "ratio": 1.5, "atLeast": 0.02} | values


def difference(values: Values, path: Path, problems: Problems) -> Difference:
    """Typed."""
    names = {"share": "share", "tolerance": "tolerance", "outputs": "outputs", "atMost": "at_most"}
    return Difference(**{name: values[spelt] for spelt, name in names.items() if spelt in values})


def gates(values: Values, path: Path, problems: Problems) -> Gates:
    """Typed."""
    names = {"errorRate": "error_rate", "difference": "difference", "minRequests": "min_requests"}
    known = {name: values[spelt] for spelt, name in names.items() if spelt in values}
    if (slow := values.get("latency")) is not None:
        known |= {
            "latency_quantile": slow["quantile"],
            "latency_ratio": slow["ratio"],
            "latency_at_least": slow["atLeast"],
        }
    return Gates(**known)


def rollout(values: Values, path: Path, problems: Problems) -> Rollout:
    """Only what belongs to the strategy; rising steps."""
    strategy = values.get("strategy", Strategy.ROLLING)
    for name, owner in _OF_STRATEGY.items():
        if name in values and owner is not strategy:
            problems.append(Problem((*path, name), f"it belongs to strategy: {owner}, but the strategy is {strategy}"))
    if strategy is Strategy.ROLLING:
        return Rolling(values.get("maxLoading", 0.25), values.get("switchAt", 1.0))
    steps: tuple[Step, ...] = values.get("steps", ())
    if not steps and not any(_within((*path, "steps"), problem) for problem in problems):
        problems.append(Problem((*path, "steps"), "it is missing; a canary needs at least one step"))
    for at in range(1, len(steps)):
        if steps[at].percent <= steps[at - 1].percent:
            said = f"{steps[at].percent:g} is not more than the {steps[at - 1].percent:g} of the step before"
            problems.append(Problem((*path, "steps", at, "percent"), f"{said}; percents must rise"))
    return Canary(steps, values.get("gates", Gates()))


def spec(values: Values, path: Path, problems: Problems) -> Values:
    """Nothing that could have no effect: what modelplane doesn't load it can't place, and a version that is named must
    be wanted."""
    if "basePath" not in values and not any(problem.path == (*path, "basePath") for problem in problems):
        problems += [
            Problem((*path, name), "it has no effect without basePath, for modelplane doesn't load the model")
            for name in ("instances", "warmUp")
            if name in values
        ]
    wanted = values["versions"].specific if "versions" in values else ()
    if wanted:
        said = f"it is not among the wanted versions, {spell((*path, 'versions', 'specific'))}: {list(wanted)}"
        problems += [
            Problem((*path, *where), f"version {version}: {said}")
            for where, version in _named(values)
            if version not in wanted
        ]
    return values


def _named(values: Values) -> list[tuple[Path, int]]:
    """Every version that is named, and where."""
    named: list[tuple[Path, int]] = [
        (("labels", label), version) for label, version in values.get("labels", {}).items()
    ]
    weights = values.get("traffic", {}).get("weights", {})
    named += [(("traffic", "weights", str(version)), version) for version, parts in weights.items() if parts]
    mirrored = values.get("mirror", {})
    if "model" not in mirrored and "version" in mirrored:
        named.append((("mirror", "version"), mirrored["version"]))
    return named


def policy(values: Values, path: Path, problems: Problems) -> Policy | None:
    """The whole."""
    name, wanted = values.get("metadata"), values.get("spec", {})
    mirrored: Mapping[str, Any] | None = wanted.get("mirror")
    if mirrored and mirrored.get("model") == name is not None and "version" not in mirrored:
        problems.append(Problem(("spec", "mirror", "model"), "it is the model itself; name another, or a version too"))
    if problems or name is None:
        return None
    routed = wanted.get("traffic", {})
    placed = wanted.get("instances", {})
    return Policy(
        name,
        base_path=wanted.get("basePath", ""),
        versions=wanted.get("versions", Versions()),
        replicas=placed.get("replicas"),
        selector=placed.get("selector", {}),
        labels=wanted.get("labels", {}),
        follow_latest="weights" not in routed,
        weights=routed.get("weights", {}),
        sticky_by=routed.get("stickyBy", ""),
        mirror=Mirror(mirrored["percent"], mirrored.get("model", name), mirrored.get("version")) if mirrored else None,
        timeout=wanted.get("timeout"),
        retries=wanted.get("retries"),
        balancing=wanted.get("balancing"),
        circuit_breaking=wanted.get("circuitBreaking"),
        outlier_detection=wanted.get("outlierDetection"),
        max_request_bytes=wanted.get("maxRequestBytes"),
        warm_up_requests=wanted.get("warmUp", 0),
        rollout=wanted.get("rollout", Rolling()),
        paused=wanted.get("paused", False),
    )


def _within(path: Path, problem: Problem) -> bool:
    return problem.path[: len(path)] == path
