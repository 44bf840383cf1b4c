"""What the model routers are told of single models: one line of text each, in the words of envoy/router_traffic.lua.

A line is `KEY=VALUE` joined by `;`, with only the keys that say something:
- `weights=3*90,4*10`: parts by version, of which a request that names none is sent to one and told so;
- `sticky=x-user-id`: the header whose value decides which;
- `labels=stable*3`: versions by label, escaped like models' names in clusters' names (names.py);
- `mirrors=digits@4*0.1`: a version, the model escaped in the same way, and the share of requests to copy to it;
- `observe=0.5`, `compare=0.1`, `between=3,4`: shares of requests to log and to compare, and between which versions;
- `timeout=2000` in milliseconds, `retries=2`, `largest=1048576` in bytes.

Invariant: a model's line depends on that model alone, but for a mirror without a version, which depends on the version
that the mirrored model serves; and whatever the registry holds, a line has no character that could end it early.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from control_plane.model import Model, Traffic
from control_plane.resources.names import encode_model

_HEADER_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")
"""RFC 9110's token, lower case."""


class Routing(NamedTuple):
    """One model's line, and the versions that it sends requests to."""

    line: str
    versions: frozenset[int]


def routing_of(model: Model, served_by: Callable[[str], int | None]) -> Routing | None:
    """`served_by`: the version that a model serves now, None if it is unknown. None: the routers need to know nothing
    of this model but perhaps a pin."""
    parts: dict[str, str] = {}
    traffic, handling = model.traffic, model.handling
    if traffic is not None:
        parts |= _traffic(model, traffic, served_by)
    if handling.timeout is not None:
        parts["timeout"] = str(max(1, round(handling.timeout * 1000)))
    if handling.retries is not None:
        parts["retries"] = str(handling.retries)
    if handling.max_request_bytes is not None:
        parts["largest"] = str(handling.max_request_bytes)
    if not parts or not model.name:
        return None
    named = frozenset() if traffic is None else {version for version, _ in traffic.weights if model.pinned}
    labelled = frozenset() if traffic is None else {version for _, version in traffic.labels}
    return Routing(";".join(f"{key}={value}" for key, value in parts.items()), frozenset(named | labelled))


def _traffic(model: Model, traffic: Traffic, served_by: Callable[[str], int | None]) -> dict[str, str]:
    parts = {}
    if model.pinned and traffic.weights:
        parts["weights"] = ",".join(f"{version}*{weight}" for version, weight in traffic.weights)
        if len(traffic.weights) > 1 and _HEADER_NAME.fullmatch(traffic.sticky_by):
            parts["sticky"] = traffic.sticky_by
    if labels := [f"{encode_model(label)}*{version}" for label, version in traffic.labels if label]:
        parts["labels"] = ",".join(labels)
    mirrors = []
    for one in traffic.mirrors:
        version = served_by(one.model) if one.version is None else one.version
        if one.model and version is not None and one.percent > 0:
            mirrors.append(f"{encode_model(one.model)}@{version}*{share(one.percent / 100)}")
    if mirrors:
        parts["mirrors"] = ",".join(mirrors)
    if traffic.observe > 0:
        parts["observe"] = share(traffic.observe)
    if traffic.compare > 0 and traffic.between:
        parts["compare"] = share(traffic.compare)
        parts["between"] = f"{traffic.between[0]},{traffic.between[1]}"
    return parts


def share(value: float) -> str:
    """As Lua reads it. Six digits are enough, and without an exponent."""
    return f"{value:.6f}".rstrip("0").rstrip(".")
