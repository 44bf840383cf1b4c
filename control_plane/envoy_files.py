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
) -> str:
    """The bootstrap as YAML text. `xds`: each control plane's HOST:PORT, tried in turn until one answers; `admin`:
    where Envoy's admin interface listens; `node_id`: unique per Envoy, so that a control plane can name it;
    `on_demand_clusters`: it doesn't ask for every model's clusters at its start (DataPlaneSettings.on_demand_clusters).

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
    return _replace(text, _NODE_ID, f"id: {_scalar(node_id)} # node id")


def _scalar(text: str) -> str:
    """A YAML single-quoted scalar: nothing but the quote itself is special in it."""
    if any(ord(character) < 32 for character in text):
        raise ValueError(f"{text!r} holds control characters")
    return "'" + text.replace("'", "''") + "'"
