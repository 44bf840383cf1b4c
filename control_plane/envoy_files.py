"""The data files of envoy/: what an Envoy box needs, and the model router's Lua source.

Invariant: what is read here is what the wheel ships; a checkout and an installed package give the same text.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from registry.addresses import split_address

_XDS_ADDRESS = "address: 127.0.0.1, port_value: 18000 } } } # xDS address"
_XDS_ENDPOINT = f"              - endpoint: {{ address: {{ socket_address: {{ {_XDS_ADDRESS}\n"
_ADMIN = "address: 127.0.0.1, port_value: 9901 } } # admin address"
_NODE_ID = "id: modelplane-envoy # node id"
_STATS = "address: 0.0.0.0, port_value: 9902 } } # stats address"
_ADMIN_INSIDE = "address: 127.0.0.1, port_value: 9901 } } } # admin, from inside"
_NOT_OF_MODELS = "?filter=%5E(%5B%5Ec%5D%7Cc%5B%5El%5D%7Ccl%5B%5Eu%5D%7Ccluster%5B%5E.%5D%7Ccluster%5C.%40%5B%5Er%5D)"
_LISTENERS = "static_resources:\n  listeners:\n"
_ALL_CLUSTERS = "  cds_config: { ads: {}, resource_api_version: V3, initial_fetch_timeout: 0s } # all clusters\n"


@cache
def read_envoy_file(name: str) -> str:
    """The text of one file of envoy/. Raises FileNotFoundError."""
    here = Path(__file__).resolve().parent
    # The wheel ships the folder inside the package; in a checkout it stands beside it.
    folder = next((folder for folder in (here / "_envoy", here.parent / "envoy") if folder.is_dir()), here / "_envoy")
    return (folder / name).read_text(encoding="utf-8")


def _replace(text: str, old: str, new: str) -> str:
    if text.count(old) != 1:
        raise ValueError(f"envoy/bootstrap.yaml was changed: {old.strip()!r} must stand in it exactly once")
    return text.replace(old, new)


def render_bootstrap(
    xds: Sequence[str] = ("127.0.0.1:18000",),
    *,
    admin: str = "127.0.0.1:9901",
    node_id: str = "modelplane-envoy",
    on_demand_clusters: bool = False,
    stats: str = "",
    stats_of_models: bool = False,
) -> str:
    """The bootstrap as YAML text. `xds`: each control plane's HOST:PORT, tried in turn until one answers; `admin`:
    where Envoy's admin interface listens; `node_id`: unique per Envoy, so that a control plane can name it;
    `on_demand_clusters`: it doesn't ask for every model's clusters at its start (DataPlaneSettings.on_demand_clusters);
    `stats`: where it shows its metrics to Prometheus, if anywhere, `stats_of_models`: those of models' clusters, too.

    Raises ValueError for an address that is none, or no address.
    """
    if not xds:
        raise ValueError("no control plane's address was given; give at least one HOST:PORT")
    lines = []
    for address in xds:
        host, port = split_address(address)
        target = f"address: {_scalar(host)}, port_value: {port}"
        lines.append(_XDS_ENDPOINT.replace("address: 127.0.0.1, port_value: 18000", target))
    host, port = split_address(admin)
    text = read_envoy_file("bootstrap.yaml")
    if on_demand_clusters:
        text = _replace(text, _ALL_CLUSTERS, "")
    text = _replace(text, _XDS_ENDPOINT, "".join(lines))
    text = _replace(text, _ADMIN, f"address: {_scalar(host)}, port_value: {port} }} }} # admin address")
    text = _replace(text, _NODE_ID, f"id: {_scalar(node_id)} # node id")
    return _with_stats(text, stats, admin, of_models=stats_of_models) if stats else text


def _with_stats(bootstrap: str, listen: str, admin: str, *, of_models: bool) -> str:
    """With the listener and the cluster of stats.yaml, whose clusters come last, as the bootstrap's do."""
    host, port = split_address(listen)
    text = _replace(read_envoy_file("stats.yaml"), _STATS, f"address: {_scalar(host)}, port_value: {port} }} }}")
    host, port = split_address(admin)
    # An address that means all interfaces is one to listen on, not one to connect to.
    inside = _scalar({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host))
    text = _replace(text, _ADMIN_INSIDE, f"address: {inside}, port_value: {port} }} }} }}")
    if of_models:
        text = _replace(text, _NOT_OF_MODELS, "?usedonly")
    listeners, clusters = text.partition(_LISTENERS)[2].split("  clusters:\n")
    return _replace(bootstrap, _LISTENERS, _LISTENERS + listeners) + clusters


def _scalar(text: str) -> str:
    """A YAML single-quoted scalar: nothing but the quote itself is special in it."""
    if any(ord(character) < 32 for character in text):
        raise ValueError(f"{text!r} holds control characters")
    return "'" + text.replace("'", "''") + "'"
