"""From the registry's records of one model to what the fleet does with it. Pure.

Invariant: a `Model` depends on the records, on which leases are in doubt and on what the operators want of this model,
and on nothing else; the order of the records doesn't matter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Set
from dataclasses import replace

from control_plane.intents import Intent
from control_plane.model import Endpoint, Health, Model, Traffic
from registry.records import ReadyRecord, ReadyState
from registry.traffic import TrafficRecord

HEALTH = {
    ReadyState.READY: Health.READY,
    ReadyState.FAILING: Health.FAILING,
    ReadyState.DRAINING: Health.DRAINING,
}
IN_USE = (ReadyState.READY, ReadyState.FAILING)
NO_ENDPOINT = (ReadyState.LOADING, ReadyState.DRAINED)
_NOTHING_NEW = (Health.DRAINING, Health.UNANSWERED)


def serving_model(
    name: str,
    records: Mapping[tuple[int, str], ReadyRecord],
    doubted: Callable[[int, str], bool],
    is_dead: Callable[[str], bool],
    intent: Intent,
) -> Model | None:
    """`records` by version and instance. `doubted`: whether the lease behind a version on an instance is lost;
    `is_dead`: whether an instance with lost leases fails its checks. None if nothing is known of such a model."""
    if not records and intent.traffic is None:
        return None
    versions: defaultdict[int, list[Endpoint]] = defaultdict(list)
    failing: defaultdict[int, set[str]] = defaultdict(set)
    dead: set[str] = set()
    several: set[int] = set()
    for (version, instance), record in sorted(records.items()):
        endpoints = versions[version]
        if record.state in NO_ENDPOINT:
            continue
        health = Health.SUSPECT if record.state in IN_USE and doubted(version, instance) else HEALTH[record.state]
        where = (record.address, record.grpc_port, record.rest_port)
        endpoints.append(Endpoint(instance, *where, record.zone, record.capacity, health))
        if record.state is ReadyState.FAILING:
            failing[version].add(instance)
        if health is Health.SUSPECT and is_dead(instance):
            dead.add(instance)
        if record.several_versions:
            several.add(version)
    used = tuple((version, _used(endpoints, failing[version], dead)) for version, endpoints in versions.items())
    if intent.traffic is not None:
        return _shared(Model(name, used, None, pinned=bool(several), handling=intent.handling), intent.traffic)
    # By what the instances hold, failing or not: else a version that overloads half of the fleet would be taken
    # from the other half as well.
    served = _served(tuple((version, tuple(endpoints)) for version, endpoints in versions.items()), dead)
    return Model(name, used, served, pinned=served in several, handling=intent.handling)


def _shared(model: Model, record: TrafficRecord) -> Model:
    """The model with its traffic. A version that nobody can be asked for gives its share to the others in proportion,
    and never to one that has no weight."""
    wanted = {version: parts for version, parts in record.weights.items() if parts > 0}
    able = {
        version: parts
        for version, parts in wanted.items()
        if any(one.health not in _NOTHING_NEW for one in model.endpoints(version))
    }
    traffic = Traffic(
        tuple(sorted(able.items())),
        tuple(sorted(record.labels.items())),
        record.sticky_by,
        record.mirrors,
        record.observe,
        record.compare,
        _between(record),
    )
    weights = able or wanted
    served = max(weights, key=lambda version: (weights[version], version))
    # Where only one version is known, every server that has any has this one.
    pinned = bool(able) and (model.pinned or len(model.versions) > 1)
    return replace(model, served=served, pinned=pinned, traffic=traffic)


def _between(record: TrafficRecord) -> tuple[int, int] | None:
    """The two newest versions that have a place among the weights, be it one without traffic yet."""
    newest = sorted(record.weights)[-2:]
    return (newest[0], newest[1]) if len(newest) == 2 else None


def _used(endpoints: Iterable[Endpoint], failing: Container[str], dead: Container[str]) -> tuple[Endpoint, ...]:
    """Nothing new for the instances on which it fails, nor for suspects that fail their checks, unless there is no
    other. One whose lease was lost counts as READY here: an etcd that loses its leases must not bring back what does
    not answer."""
    all_of_them = tuple(endpoints)
    answering = [one for one in all_of_them if one.instance not in dead and one.health is not Health.DRAINING]
    if any(one.instance not in failing for one in answering):
        # Listed, for what is in flight there is to be known when it drains (docs/proof.md).
        all_of_them = tuple(
            replace(one, health=Health.DRAINING) if one.instance in failing else one for one in all_of_them
        )
    if not answering:
        return all_of_them
    return tuple(
        replace(one, health=Health.UNANSWERED) if one.instance in dead and one.health is not Health.DRAINING else one
        for one in all_of_them
    )


def _served(versions: tuple[tuple[int, tuple[Endpoint, ...]], ...], dead: Set[str]) -> int | None:
    """The version that the whole fleet answers with when a request names none: the newest that at least half of the
    model's instances have, so that a switch neither waits for the last instance nor throws the whole load on the
    first; while no version has that, the commonest, newest first. What fails its checks has no say, if any does not."""
    usable = {
        version: {endpoint.instance for endpoint in endpoints if endpoint.health is not Health.DRAINING}
        for version, endpoints in versions
    }
    instances = set().union(*usable.values())
    if answering := instances - dead:
        usable = {version: held - dead for version, held in usable.items()}
        instances = answering
    if not instances:
        # Only draining endpoints, or none: name the newest that has any, for its cluster keeps the model known.
        return max((version for version, endpoints in versions if endpoints), default=None)
    enough = [version for version, held in usable.items() if 2 * len(held) >= len(instances)]
    return max(enough) if enough else max(usable, key=lambda version: (len(usable[version]), version))
