"""The model routers' configuration, delivered by ECDS so that a change of pins reloads a filter and no listener.

Invariant: it grows only with the models that are pinned or have a line of their own (traffic.py), and equal ones give
equal bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from envoy.config.core.v3 import extension_pb2
from envoy.extensions.filters.http.lua.v3 import lua_pb2

from control_plane.envoy_files import read_envoy_file
from control_plane.resources.names import GRPC_ROUTER, REST_ROUTER, encode_model, grpc_cluster, rest_cluster
from control_plane.resources.resource import Resource, pack
from control_plane.resources.settings import DataPlaneSettings
from control_plane.resources.traffic import Routing, share

_NameOf: TypeAlias = Callable[[str, int], str]


def lua_source(
    protocol: str, pins: Mapping[str, int], routings: Mapping[str, Routing], settings: DataPlaneSettings
) -> str:
    """One router's inline source: pins and models' lines as text, what both routers share, and the one for `grpc` or
    `rest`."""
    # The text can't end a long string early: neither an encoded name nor a line holds a bracket.
    pinned = "".join(sorted(f"{encode_model(model)} {version}\n" for model, version in pins.items()))
    lines = "".join(sorted(f"{encode_model(model)} {routing.line}\n" for model, routing in routings.items()))
    code = "\n".join(read_envoy_file(f"router_{part}.lua") for part in ("common", "traffic", protocol))
    observed = share(settings.observe_percent / 100) if settings.observe_percent else "nil"
    told = f"local NAMED = {str(settings.named).lower()}\nlocal OBSERVED = {observed}\n"
    return f"local PINNED = [==[\n{pinned}]==]\nlocal TRAFFIC = [==[\n{lines}]==]\n{told}{code}"


def _router(
    name: str,
    protocol: str,
    pins: Mapping[str, int],
    routings: Mapping[str, Routing],
    name_of: _NameOf,
    settings: DataPlaneSettings,
) -> Resource:
    lua = lua_pb2.Lua(stat_prefix=name)
    lua.default_source_code.inline_string = lua_source(protocol, pins, routings, settings)
    # The router clears the cache itself once it has set the cluster; by itself the filter would do it at every header.
    lua.clear_route_cache.value = False
    config = extension_pb2.TypedExtensionConfig(name=name)
    config.typed_config.Pack(lua, deterministic=True)
    clusters = {name_of(model, version) for model, version in pins.items()}
    clusters.update(name_of(model, version) for model, routing in routings.items() for version in routing.versions)
    return pack(name, config, requires=frozenset(clusters))


def router_configs(
    pins: Mapping[str, int], settings: DataPlaneSettings, routings: Mapping[str, Routing] | None = None
) -> tuple[Resource, ...]:
    """The gRPC router and, unless there is no REST listener, the REST router. `pins`: the version that must be written
    into requests that name none, for the models that need it; `routings`: the models that need more than that."""
    grpc_router = _router(GRPC_ROUTER, "grpc", pins, routings or {}, grpc_cluster, settings)
    if not settings.rest_port:
        return (grpc_router,)
    return grpc_router, _router(REST_ROUTER, "rest", pins, routings or {}, rest_cluster, settings)
