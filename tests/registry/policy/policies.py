"""Random documents: valid ones, broken ones, and none at all."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from registry.policy.model import API_VERSION, KIND

NAMES = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=12)
VERSIONS = st.integers(0, 2**63 - 1)
PERCENTS = st.one_of(st.integers(1, 100), st.floats(0.01, 100))
DURATIONS = st.builds("{}{}".format, st.integers(1, 3600), st.sampled_from(["ms", "s"])) | st.sampled_from(
    ["1.5s", "0.25m", "5m", "1.001s", "24h"]
)
SHARES = st.builds("{}%".format, st.integers(1, 100)) | st.sampled_from(["0.5%", "33.333333%"])


def _some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


@st.composite
def _steps(draw: st.DrawFn) -> list[dict[str, Any]]:
    percents = sorted(draw(st.sets(PERCENTS, min_size=1, max_size=4)))
    step = _some(duration=st.sampled_from(["1s", "5m", "720h"]), requests=st.integers(1, 10**9))
    return [{"percent": percent, **draw(step)} for percent in percents]


_DIFFERENCE = _some(
    share=SHARES,
    tolerance=st.floats(0, 1e12),
    outputs=st.dictionaries(NAMES, st.integers(0, 5), max_size=2),
    atMost=SHARES | st.just("0%"),
)
_GATES = _some(
    errorRate=SHARES | st.just("0%"),
    latency=_some(
        quantile=st.floats(0.5, 0.9999), ratio=st.floats(1, 1000), atLeast=DURATIONS.filter(lambda d: d != "24h")
    ),
    difference=_DIFFERENCE,
    minRequests=st.integers(1, 10**6),
)
_ROLLOUTS = _some(
    strategy=st.just("rolling"), maxLoading=SHARES.filter(lambda one: one != "0.5%"), switchAt=st.just("80%")
) | (st.builds(lambda steps, more: {"strategy": "canary", "steps": steps, **more}, _steps(), _some(gates=_GATES)))
_SPECS = _some(
    versions=st.one_of(
        st.builds(lambda n: {"latest": n}, st.integers(1, 1000)),
        st.just({"all": True}),
    ),
    labels=st.dictionaries(NAMES, VERSIONS, max_size=3),
    traffic=_some(follow=st.just("latest"), stickyBy=st.sampled_from(["x-user-id", "X-User"]))
    | st.builds(
        lambda weights: {"weights": weights}, st.dictionaries(VERSIONS.map(str), st.integers(1, 100), min_size=1)
    ),
    mirror=st.builds(lambda percent, version: {"percent": percent, "version": version}, PERCENTS, VERSIONS)
    | st.builds(lambda percent: {"percent": percent, "model": "another one"}, PERCENTS),
    timeout=DURATIONS,
    retries=st.builds(lambda n: {"attempts": n}, st.integers(0, 100)),
    balancing=st.sampled_from(["leastRequest", "roundRobin", "random"]),
    circuitBreaking=_some(maxRequests=st.integers(1, 2**31 - 1), maxConnections=st.integers(1, 10)),
    outlierDetection=_some(
        consecutiveErrors=st.integers(1, 9), ejectionTime=DURATIONS, maxEjectionPercent=st.integers(0, 100)
    ),
    maxRequestBytes=st.one_of(st.integers(1, 2**31 - 1), st.sampled_from(["1B", "512KiB", "16MiB", "1GiB"])),
    rollout=_ROLLOUTS,
    paused=st.booleans(),
)
_PLACED = st.fixed_dictionaries(
    {"basePath": st.sampled_from(["/models/digits", "gs://bucket/a b"])},
    optional={
        "instances": _some(replicas=st.integers(1, 100), selector=st.dictionaries(NAMES, NAMES, max_size=2)),
        "warmUp": st.builds(lambda n: {"requests": n}, st.integers(0, 1000)),
    },
)


def _document(name: str, spec: dict[str, Any], placed: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": {**spec, **placed}}


VALID = st.builds(_document, NAMES, _SPECS, _PLACED | st.just({}))
"""Documents that are policies."""

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
"""Any JSON value, and what Python's reader takes for one: NaN, halves of surrogate pairs."""


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    here = [path] if path else []
    if isinstance(value, dict):
        return here + [place for key, one in value.items() for place in _places(one, (*path, key))]
    if isinstance(value, list):
        return here + [place for at, one in enumerate(value) for place in _places(one, (*path, at))]
    return here


def _at(document: Any, place: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    document = copy.deepcopy(document)
    parent = document
    for part in place[:-1]:
        parent = parent[part]
    change(parent, place[-1])
    return document


@st.composite
def _mutated(draw: st.DrawFn) -> Any:
    document = draw(VALID)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(_places(document) or [("apiVersion",)]))
        value = draw(ANYTHING)
        key = draw(st.text(max_size=6))

        def replace(parent: Any, at: Any, value: Any = value) -> None:
            parent[at] = value

        def remove(parent: Any, at: Any) -> None:
            del parent[at]

        def rename(parent: Any, at: Any, key: str = key) -> None:
            if isinstance(parent, dict):
                parent[key] = parent.pop(at)

        change = draw(st.sampled_from([replace, remove, rename]))
        if not isinstance(document, dict) or not _places(document):
            return document
        document = _at(document, place, change)
    return document


MUTATED = _mutated()
"""Documents that were policies before one to three of their fields were changed, renamed or taken away."""
