"""Decisions as transactions. Pure.

Invariant: they go out in the order traffic, rollouts, assignments, events, so that one that fails half-way leaves
nothing unloaded that traffic still names; each is within etcd's limits, fences included.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from control_plane.planning.plan import Decisions
from registry.assignments import encode_assignment
from registry.etcd.model import Delete, Operation, Put
from registry.events import Event, encode_event, event_id
from registry.keys import AssignmentKey, EventKey, Key, Keyspace, RolloutKey, TrafficKey
from registry.rollouts import encode_rollout
from registry.traffic import encode_traffic
from registry.transactions import MAX_BYTES, MAX_OPERATIONS, size

MOST_EVENTS = 300
"""Events of one round: a thousand models that are placed at once are told as a number."""


def operations(decisions: Decisions, keyspace: Keyspace) -> Iterator[Operation]:
    """All but the events."""

    def write(key: Key, value: bytes | None) -> Operation:
        spelled = keyspace.make(key)
        return Put(spelled, value) if value is not None else Delete(spelled)

    for model, record in sorted(decisions.traffic.items()):
        yield write(TrafficKey(model), encode_traffic(record) if record is not None else None)
    for model, rollout in sorted(decisions.rollouts.items()):
        yield write(RolloutKey(model), encode_rollout(rollout) if rollout is not None else None)
    for instance, one in sorted(decisions.assignments.items()):
        yield write(AssignmentKey(instance), encode_assignment(one) if one is not None else None)


def told(events: Iterable[Event], by: str) -> list[Event]:
    """The events to write, with who decided."""
    every = [replace(event, by=by) for event in events]
    if len(every) <= MOST_EVENTS:
        return every
    rest = every[MOST_EVENTS - 1 :]
    more = Event(rest[0].at, "MoreHappened", text=f"{len(rest)} more events at once, which the log tells", by=by)
    return [*every[: MOST_EVENTS - 1], more]


def event_operations(events: Iterable[Event], keyspace: Keyspace, lease: int, salt: int) -> Iterator[Operation]:
    """Events to put on `lease`. `salt`: what tells apart those of one microsecond, counted up from here."""
    for number, event in enumerate(events):
        yield Put(keyspace.make(EventKey(event_id(event.at, salt + number))), encode_event(event), lease)


def batches(every: Iterable[Operation]) -> Iterator[list[Operation]]:
    """Cut into transactions, in order. What is too large for any is one by itself, for etcd to refuse."""
    batch: list[Operation] = []
    room = MAX_BYTES
    for operation in every:
        needed = size(operation.key, operation.value if isinstance(operation, Put) else None)
        if batch and (needed > room or len(batch) == MAX_OPERATIONS):
            yield batch
            batch, room = [], MAX_BYTES
        batch.append(operation)
        room -= needed
    if batch:
        yield batch
