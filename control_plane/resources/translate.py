"""From models to Envoy resources. Invariant: pure functions of their arguments, so every replica makes the same bytes,
and what belongs to one model depends on that model alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from control_plane.model import Model
from control_plane.resources.clusters import Protocol, cluster, cluster_template
from control_plane.resources.endpoints import load_assignment, serialised_endpoints
from control_plane.resources.listeners import listeners
from control_plane.resources.names import grpc_cluster, rest_cluster
from control_plane.resources.resource import Resource
from control_plane.resources.router import router_configs
from control_plane.resources.settings import DataPlaneSettings
from control_plane.resources.tracing import collector
from control_plane.resources.traffic import Routing


def has_rest(model: Model) -> bool:
    """Whether REST clusters exist for this model: some instance of it serves REST, or it is known but has no endpoint,
    so that its REST clients are told what its gRPC clients are told: UNAVAILABLE, not NOT_FOUND."""
    endpoints = [endpoint for _, endpoints in model.versions for endpoint in endpoints]
    return not endpoints or any(endpoint.rest_port for endpoint in endpoints)


def model_resources(model: Model, settings: DataPlaneSettings) -> tuple[Resource, ...]:
    """Every cluster and load assignment of one model: one pair for requests that name no version, one per version, and
    the same again for REST (`has_rest`). The first lists the instances that have only other versions too, as DRAINING
    (`Model.left_over`). A version without endpoints has an empty assignment, which
    Envoy answers as UNAVAILABLE; a version that isn't there at all is NOT_FOUND.
    """
    if not model.name:  # TF Serving allows it, but no request can ask for it and Envoy refuses such a cluster
        return ()
    resources = _protocol_resources(model, Protocol.GRPC, grpc_cluster, settings)
    if has_rest(model):
        resources += _protocol_resources(model, Protocol.REST, rest_cluster, settings)
    return tuple(resources)


def _protocol_resources(
    model: Model, protocol: Protocol, name_of: Callable[[str, int | None], str], settings: DataPlaneSettings
) -> list[Resource]:
    resources: list[Resource] = []
    template = cluster_template(protocol, settings, model.handling.tuning)

    def add(version: int | None, assignment: bytes) -> None:
        name = name_of(model.name, version)
        resources.append(cluster(name, template, model.name))
        resources.append(load_assignment(name, assignment, model.name))

    for version, endpoints in model.versions:
        add(version, serialised_endpoints(endpoints, protocol))
    add(None, serialised_endpoints(model.endpoints(None) + model.left_over(), protocol))
    return resources


def fleet_resources(
    pins: Mapping[str, int], settings: DataPlaneSettings, routings: Mapping[str, Routing] | None = None
) -> tuple[Resource, ...]:
    """What all models share: the listeners, and the model routers' configuration with its pins (model -> version) and
    with what is special about single models.

    A router's configuration requires the clusters that it names. A REST cluster among them exists only where the model
    has REST (`has_rest`), and a label may mean a version that no instance has; one that isn't among the fleet's
    resources can't be waited for.
    """
    return (*collector(settings), *listeners(settings), *router_configs(pins, settings, routings))
