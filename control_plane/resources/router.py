"""The model routers' configuration, delivered by ECDS so that a change of pins reloads a filter and no listener.

Invariant: it grows with the pinned models only, and equal pins give equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping

from envoy.config.core.v3 import extension_pb2
from envoy.extensions.filters.http.lua.v3 import lua_pb2

from control_plane.envoy_files import read_envoy_file
from control_plane.resources.names import GRPC_ROUTER, REST_ROUTER, encode_model, grpc_cluster, rest_cluster
from control_plane.resources.resource import Resource, pack
from control_plane.resources.settings import DataPlaneSettings


def lua_source(protocol: str, pins: Mapping[str, int]) -> str:
    """One router's inline source: the pins as text, what both routers share, and the one for `grpc` or `rest`."""
    # The text can't end the long string early: an encoded name holds no bracket.
    lines = "".join(sorted(f"{encode_model(model)} {version}\n" for model, version in pins.items()))
    return (
        f"local PINNED = [==[\n{lines}]==]\n"
        f"{read_envoy_file('router_common.lua')}\n{read_envoy_file(f'router_{protocol}.lua')}"
    )


def _router(name: str, protocol: str, pins: Mapping[str, int], requires: frozenset[str]) -> Resource:
    lua = lua_pb2.Lua(stat_prefix=name)
    lua.default_source_code.inline_string = lua_source(protocol, pins)
    # The router clears the cache itself once it has set the cluster; by itself the filter would do it at every header.
    lua.clear_route_cache.value = False
    config = extension_pb2.TypedExtensionConfig(name=name)
    config.typed_config.Pack(lua, deterministic=True)
    return pack(name, config, requires=requires)


def router_configs(pins: Mapping[str, int], settings: DataPlaneSettings) -> tuple[Resource, ...]:
    """The gRPC router and, unless there is no REST listener, the REST router. `pins`: the version that must be written
    into requests that name none, for the models that need it."""
    grpc = frozenset(grpc_cluster(model, version) for model, version in pins.items())
    grpc_router = _router(GRPC_ROUTER, "grpc", pins, grpc)
    if not settings.rest_port:
        return (grpc_router,)
    rest = frozenset(rest_cluster(model, version) for model, version in pins.items())
    return grpc_router, _router(REST_ROUTER, "rest", pins, rest)
