"""What drains, as load reports name it. Pure.

A drain is of an instance (all that drains of it, by its name) or of one servable of an instance that goes on with
others (by its ReadyKey). Its places are the clusters and endpoints whose requests have to end.

A request that names no version goes to the cluster `MODEL`. Of a version that drains its endpoint is counted there too,
unless the instance is there as a READY endpoint of another version: then what is in flight is that version's. Requests
that got there before, for the old one, are not to be told from these, but then the server unloads the old one, and
TensorFlow Serving does that only when the last request that uses it has ended.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from itertools import chain
from typing import TypeAlias

from control_plane.catalog import Address, Catalog
from control_plane.model import Health, Model
from control_plane.resources.names import grpc_cluster, rest_cluster
from registry.keys import ReadyKey

Place: TypeAlias = tuple[str, str, int]
"""A cluster's name, and an endpoint's address and TCP port."""

Drain: TypeAlias = str | ReadyKey
"""An instance's name, or one servable of an instance that does not drain as a whole."""

Places: TypeAlias = Mapping[Drain, frozenset[Place]]


def draining_places(catalog: Catalog) -> dict[Drain, frozenset[Place]]:
    """Where to look for what is in flight, per drain."""
    drains: dict[Drain, frozenset[Place]] = {}
    for instance, held in catalog.draining.items():
        each: dict[Drain, frozenset[Place]] = {
            key: _places(catalog.models.get(key.model), key, where) for key, where in held.items()
        }
        drains[instance] = frozenset(chain.from_iterable(each.values()))
        if catalog.is_used(instance):
            drains |= each
    return drains


def draining_keys(catalog: Catalog, drains: Iterable[Drain]) -> dict[Drain, frozenset[Hashable]]:
    """What each of these drains consists of."""
    held = catalog.draining
    return {one: frozenset(held[one] if isinstance(one, str) else (one,)) for one in drains}


def _places(model: Model | None, key: ReadyKey, where: Address) -> frozenset[Place]:
    versions: list[int | None] = [key.version]
    if model is None or not _is_used(model, key.instance):
        versions.append(None)
    places = set[Place]()
    for version in versions:
        places.add((grpc_cluster(key.model, version), where.address, where.grpc_port))
        if where.rest_port:
            places.add((rest_cluster(key.model, version), where.address, where.rest_port))
    return frozenset(places)


def _is_used(model: Model, instance: str) -> bool:
    """Whether requests that name no version may be sent to this instance."""
    return any(
        endpoint.instance == instance and endpoint.health is not Health.DRAINING for endpoint in model.endpoints(None)
    )
