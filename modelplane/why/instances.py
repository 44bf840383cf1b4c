"""Why one version of a model is, or is not, on each instance. Pure: facts in, reasons out.

Invariant: an instance that is not ready always has a reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from modelplane.table import listed
from modelplane.why.facts import Facts
from registry.assignments import FULL, AssignedModel, encode_assignment
from registry.drains import told_drain
from registry.keys import ReadyKey
from registry.policy.model import Policy, Rolling
from registry.records import InstanceRecord, InstanceState, Proof, ReadyRecord, ReadyState, Servable, ServableState

READY = "ready"
LEFT_OUT = "left out"
_MEMORY_FACTOR = 1.2
"""Bytes of memory per byte of files, as the planner reckons."""
_MANY = 100
"""Models up to which an assignment is certainly not full."""
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True, slots=True)
class Place:
    """`state`: a word or two; `reason`: empty where there is nothing more to say. `used`: requests are sent there."""

    instance: str
    state: str
    reason: str = ""
    used: bool = False


def places(facts: Facts, model: str, version: int, policy: Policy | None) -> list[Place]:
    """Of each instance that has to do with the version, by name; with a policy that loads the model: of all."""
    concerned = set(facts.instances) | {key.instance for key in facts.ready if key.model == model}
    concerned |= {key.instance for held in facts.suspects.values() for key in held if key.model == model}
    concerned |= {name for name, one in facts.assignments.items() if model in one.models}
    found = (_place(facts, model, version, policy, name) for name in sorted(concerned))
    return [one for one in found if one is not None]


def _place(facts: Facts, model: str, version: int, policy: Policy | None, name: str) -> Place | None:
    record, key = facts.instances.get(name), ReadyKey(model, version, name)
    if record is None:
        return _lost(facts, key)
    drain = facts.drains.get(name)
    if drain is not None and drain.covers(model, version):
        return Place(name, "drained", told_drain(drain, name))
    ready = facts.ready.get(key)
    if ready is not None and ready.state is ReadyState.READY:
        return Place(name, READY, used=True)
    servable = next((one for one in record.servables if (one.model, one.version) == (model, version)), None)
    known = _told(name, ready, servable) or _conditions(name, record, model, version)
    if known is not None:
        return known
    if record.state is InstanceState.UNREACHABLE:
        return Place(name, "unreachable", record.detail or "its server does not answer its monitor")
    if policy is None or not policy.base_path:
        others = [one for one in record.servables if one.model == model]
        # What is not modelplane's to load is nobody's fault where it is not.
        return Place(name, LEFT_OUT, f"its server does not hold version {version}") if others else None
    return _unplaced(facts, record, policy, version, name)


def _lost(facts: Facts, key: ReadyKey) -> Place | None:
    if facts.suspected(key):
        return Place(key.instance, "lease lost", "it is used on until its loss is believed", used=True)
    assigned = _assigned(facts, key.instance, key.model)
    if assigned is None:
        return None
    text = "its monitor has gone, or can't reach etcd; after a while its models are placed elsewhere"
    return Place(key.instance, "lease lost", text)


def _told(name: str, ready: ReadyRecord | None, servable: Servable | None) -> Place | None:
    """By its readiness, and what its monitor saw."""
    detail = servable.proof_detail if servable is not None else ""
    match ready.state if ready is not None else None:
        case ReadyState.FAILING:
            said = f"it answered, and does not now{f': {detail}' if detail else ''}"
            return Place(name, "failing", f"{said}; asked only where nobody else is ready")
        case ReadyState.DRAINING:
            return Place(name, "draining", "it ends what it was asked and gets nothing new")
        case ReadyState.DRAINED:
            return Place(name, "drained", "nothing is in flight on it, and it gets nothing new")
    match servable:
        case Servable(state=ServableState.END, error=error) if error:
            return Place(name, "failed", f"it could not be loaded: {error}")
        case Servable(state=ServableState.START | ServableState.LOADING, error=error):
            return Place(name, "loading", error)
        case Servable(state=ServableState.AVAILABLE, proof=Proof.FAILED):
            return Place(name, "failed", f"it is loaded, but does not answer: {detail}")
        case Servable(state=ServableState.AVAILABLE):
            return Place(name, "being tried", "it is loaded, and its monitor asks it")
        case Servable(state=ServableState.UNLOADING):
            return Place(name, "unloading")
        case _:
            return Place(name, "loading") if ready is not None else None


def _conditions(name: str, record: InstanceRecord, model: str, version: int) -> Place | None:
    """Troubles with a name: those that name the version first, then those of the model, then those of the instance."""
    for one in record.conditions:
        if one.model == model and (one.version == version or f"version {version}:" in one.text):
            return Place(name, "failed", f"{one.name}: {one.text}")
    for one in record.conditions:
        if one.model == model and one.version is None and " version " not in one.text.partition(":")[0]:
            return Place(name, LEFT_OUT, f"{one.name}: {one.text}")
    for one in record.conditions:
        if not one.model and one.name == "AssignmentUnreadable":
            return Place(name, LEFT_OUT, f"{one.name}: {one.text}")
    return None


def _unplaced(facts: Facts, record: InstanceRecord, policy: Policy, version: int, name: str) -> Place:
    """Nothing of the version is on it."""
    if not record.managed:
        return Place(name, LEFT_OUT, "not managed: its monitor runs without --manage")
    for label, wanted in sorted(policy.selector.items()):
        if (has := record.labels.get(label)) != wanted:
            said = f"is {has!r}" if has is not None else "is missing"
            return Place(name, LEFT_OUT, f"the selector wants label {label}={wanted}, which {said}")
    if said := _not_on_disk(facts, policy, version, name):
        return Place(name, LEFT_OUT, said)
    assigned = _assigned(facts, name, policy.name)
    if assigned is not None and version in assigned.versions:
        return Place(name, "waiting", "it is assigned; its monitor has not begun to load it")
    rollout = facts.policies.rollouts.get(policy.name)
    if assigned is None and rollout is not None and version in rollout.tried.get(name, ()):
        said = "it could not be loaded there, so its copy went elsewhere until the policy or version changes"
        return Place(name, LEFT_OUT, said)
    if said := _no_room(facts, record, policy.name, version, name):
        return Place(name, LEFT_OUT, said)
    if assigned is not None:
        has = ", ".join(map(str, assigned.versions)) or "none"
        return Place(name, "waiting", f"assigned are {has} so far; {_turn(policy)}")
    holders = [one for one in sorted(facts.assignments) if _assigned(facts, one, policy.name) is not None]
    if policy.replicas is not None and len(holders) >= policy.replicas:
        return Place(name, LEFT_OUT, f"not chosen: {policy.replicas} are wanted, which are {listed(holders)}")
    return Place(name, "waiting", "the leader has not placed it yet")


def _turn(policy: Policy) -> str:
    if policy.paused:
        return "the policy is paused"
    share = policy.rollout.max_loading if isinstance(policy.rollout, Rolling) else Rolling().max_loading
    return f"{share:.0%} of the instances may load at a time"


def _not_on_disk(facts: Facts, policy: Policy, version: int, name: str) -> str:
    disk = facts.disks.get(name)
    found = disk.models.get(policy.name) if disk is not None else None
    if found is None or found.base_path != policy.base_path:
        return f"its monitor has not told yet what lies under {policy.base_path}"
    if found.error:
        return f"{policy.base_path} can't be read there: {found.error}"
    if version in found.versions:
        return ""
    there = ", ".join(str(one) for one in sorted(found.versions, reverse=True)) or "nothing"
    return f"version {version} is not under {policy.base_path} there, but {there}"


def _no_room(facts: Facts, record: InstanceRecord, model: str, version: int, name: str) -> str:
    assigned = facts.assignments.get(name)
    if assigned is not None and len(assigned.models) > _MANY and model not in assigned.models:
        length = len(encode_assignment(assigned))
        if length >= FULL:
            return f"its {len(assigned.models)} models are as many as its assignment can hold: {_size(length)}"
    if not record.memory:
        return ""
    taken = {(one, number) for one, what in (assigned.models if assigned else {}).items() for number in what.versions}
    free = record.memory - sum(_needs(facts, *servable) for servable in taken)
    needed = _needs(facts, model, version)
    if needed <= free:
        return ""
    return f"no room: it takes about {_size(needed)}, and {_size(max(0.0, free))} of {_size(record.memory)} are free"


def _needs(facts: Facts, model: str, version: int) -> float:
    found = (disk.models[model].versions for disk in facts.disks.values() if model in disk.models)
    return _MEMORY_FACTOR * max((sizes.get(version, 0) for sizes in found), default=0)


def _size(count: float) -> str:
    at = 0
    while count >= 1024 and at < len(_UNITS) - 1:
        count, at = count / 1024, at + 1
    return f"{count:.3g} {_UNITS[at]}"


def _assigned(facts: Facts, instance: str, model: str) -> AssignedModel | None:
    assignment = facts.assignments.get(instance)
    return assignment.models.get(model) if assignment is not None else None


def grouped(found: list[Place]) -> Iterator[tuple[Place, list[str]]]:
    """Those of which the same is to be said, once, with their names; in the order of the first of each."""
    groups: dict[tuple[str, str], list[Place]] = {}
    for one in found:
        groups.setdefault((one.state, one.reason), []).append(one)
    for same in groups.values():
        yield same[0], [one.instance for one in same]
