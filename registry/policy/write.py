"""A Policy as a document again. Invariant: `read_policy(document_of(policy)) == policy`; defaults are left out."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from registry.policy.build import Strategy
from registry.policy.model import API_VERSION, KIND, Canary, Difference, Gates, Policy, Rollout, Step, Versions
from registry.policy.shapes import BYTES, SECONDS

_DECIMALS = Decimal("0.001")


def document_of(policy: Policy) -> dict[str, Any]:
    """Spell it out, in the order that the documentation has."""
    limits, outliers = policy.circuit_breaking, policy.outlier_detection
    spec = {
        "basePath": policy.base_path or None,
        "versions": None if policy.versions == Versions() else _versions(policy.versions),
        "instances": _some({"replicas": policy.replicas, "selector": dict(policy.selector) or None}),
        "labels": dict(policy.labels) or None,
        "traffic": _some(
            {
                "weights": {str(version): parts for version, parts in policy.weights.items()} or None,
                "stickyBy": policy.sticky_by or None,
            }
        ),
        "mirror": _mirror(policy),
        "timeout": spell_duration(policy.timeout),
        "retries": None if policy.retries is None else {"attempts": policy.retries},
        "balancing": policy.balancing and policy.balancing.value,
        "circuitBreaking": limits
        and _given({"maxRequests": limits.max_requests, "maxConnections": limits.max_connections}),
        "outlierDetection": outliers
        and _given(
            {
                "consecutiveErrors": outliers.consecutive_errors,
                "ejectionTime": spell_duration(outliers.ejection_time),
                "maxEjectionPercent": outliers.max_ejection_percent,
            }
        ),
        "maxRequestBytes": None if policy.max_request_bytes is None else spell_size(policy.max_request_bytes),
        "warmUp": {"requests": policy.warm_up_requests} if policy.warm_up_requests else None,
        "rollout": _rollout(policy.rollout),
        "paused": policy.paused or None,
    }
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": policy.name}, "spec": _given(spec)}


def _versions(versions: Versions) -> dict[str, Any]:
    if versions.all:
        return {"all": True}
    return {"specific": list(versions.specific)} if versions.specific else {"latest": versions.latest}


def _mirror(policy: Policy) -> dict[str, Any] | None:
    if policy.mirror is None:
        return None
    model = None if policy.mirror.model == policy.name else policy.mirror.model
    return _given({"percent": policy.mirror.percent, "version": policy.mirror.version, "model": model})


def _rollout(rollout: Rollout) -> dict[str, Any] | None:
    if not isinstance(rollout, Canary):
        shares = {"maxLoading": (rollout.max_loading, 0.25), "switchAt": (rollout.switch_at, 1.0)}
        return _some({name: None if share == usual else spell_share(share) for name, (share, usual) in shares.items()})
    return _given(
        {
            "strategy": Strategy.CANARY.value,
            "steps": [_step(step) for step in rollout.steps],
            "gates": None if rollout.gates == Gates() else _gates(rollout.gates),
        }
    )


def _step(step: Step) -> dict[str, Any]:
    return _given({"percent": step.percent, "duration": spell_duration(step.duration), "requests": step.requests})


def _gates(gates: Gates) -> dict[str, Any]:
    latency = gates.latency_ratio and {
        "quantile": gates.latency_quantile,
        "ratio": gates.latency_ratio,
        "atLeast": spell_duration(gates.latency_at_least),
    }
    return _given(
        {
            "errorRate": spell_share(gates.error_rate),
            "latency": latency,
            "difference": gates.difference and _difference(gates.difference),
            "minRequests": gates.min_requests,
        }
    )


def _difference(difference: Difference) -> dict[str, Any]:
    return _given(
        {
            "share": spell_share(difference.share),
            "tolerance": difference.tolerance,
            "outputs": dict(difference.outputs) or None,
            "atMost": spell_share(difference.at_most),
        }
    )


def spell_share(share: float) -> str:
    """`0.25` as `25%`."""
    return f"{_plain(Decimal(repr(share)) * 100)}%"


def spell_duration(seconds: float | None) -> str | None:
    """`300.0` as `5m`: the largest unit in which it is a whole number, else the largest that a document may have."""
    if seconds is None:
        return None
    exact = Decimal(repr(seconds))
    spelt = {unit: exact / length for unit, length in SECONDS.items()}
    whole = [unit for unit, amount in spelt.items() if amount == amount.to_integral_value() and amount]
    fine = [unit for unit, amount in spelt.items() if amount == amount.quantize(_DECIMALS)]
    unit = (whole or (fine if seconds else ["ms"]) or ["ms"])[0]
    return f"{_plain(spelt[unit])}{unit}"


def spell_size(size: int) -> str:
    """`16777216` as `16MiB`: the largest unit in which it is a whole number."""
    unit = next(unit for unit, length in BYTES.items() if size % length == 0)
    return f"{size // BYTES[unit]}{unit}"


def _plain(number: Decimal) -> str:
    return f"{number.normalize():f}"


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _some(values: Mapping[str, Any]) -> dict[str, Any] | None:
    return _given(values) or None
