"""Policies in etcd: read, and changed by compare-and-swap.

Invariant: each change is one transaction, which writes the new policy, keeps the one that it was made from in the
history, and tells of it in an event; or it writes nothing. So the generations of a model are one sequence without gaps.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from modelplane.access import FleetConfig, located, silent
from modelplane.errors import ConflictError, UserError
from modelplane.table import clean, listed
from registry.assignments import decode_assignment
from registry.etcd import Delete, EtcdClient, Get, Put, Unavailable
from registry.etcd.model import KeyValue, Operation, absent, unchanged
from registry.events import EVENT_TTL, Event, encode_event, event_id
from registry.keys import AssignmentKey, EventKey, HistoryKey, Keyspace, PolicyKey
from registry.policy.model import Policy
from registry.policy.read import PolicyErrors, read_policy
from registry.policy.stored import StoredPolicy, decode_stored, encode_stored, read_stored
from registry.records import RecordError

HISTORY = 20
"""How many earlier policies of a model are kept."""
_ATTEMPTS = 200
_LONGEST_PAUSE = 0.1


class Done(StrEnum):
    """What became of a policy."""

    CREATED = "created"
    CONFIGURED = "configured"
    UNCHANGED = "unchanged"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Held:
    """What etcd holds of one model. `raw`: None where there is no policy. `stored`, `policy`: None where it can't be
    read, too, and then `unreadable` says why. `history`: earlier ones by generation, oldest first."""

    model: str
    mod_revision: int = 0
    raw: bytes | None = None
    stored: StoredPolicy | None = None
    policy: Policy | None = None
    unreadable: str = ""
    history: Mapping[int, bytes] = field(default_factory=dict)

    @property
    def generation(self) -> int:
        """Of the policy; of one that doesn't tell, the one after its predecessor's; 0: there is none."""
        if self.raw is None:
            return 0
        return self.stored.generation if self.stored else max(self.history, default=0) + 1

    @property
    def next_generation(self) -> int:
        """Of what replaces it."""
        return max(self.generation, max(self.history, default=0)) + 1

    def needed(self) -> StoredPolicy:
        """The policy. Raises UserError where there is none, or none that can be read."""
        if self.raw is None:
            raise UserError(f"there is no policy of model {self.model!r}; `modelplane apply` one first")
        if self.stored is None or self.policy is None:
            raise UserError(
                f"the policy of model {self.model!r} can't be read: {self.unreadable}; `modelplane apply` a good one"
            )
        return self.stored


@dataclass(frozen=True, slots=True)
class Change:
    """`document` None: the policy is deleted. `text`: what was done, for the event."""

    document: Mapping[str, Any] | None
    text: str


@dataclass(frozen=True, slots=True)
class Result:
    """What became of it. `generation`: of the policy that holds now, or that was deleted."""

    model: str
    done: Done
    generation: int
    before: Held
    document: Mapping[str, Any] | None


class PolicyStore:
    """One command's connection to etcd. `by`: who changes; `message`: why."""

    def __init__(self, client: EtcdClient, keyspace: Keyspace, no_answer: UserError, by: str, message: str) -> None:
        self.client = client
        self.keyspace = keyspace
        self._no_answer = no_answer
        self._by, self._message = by, message
        self._lease = 0

    async def read(self, model: str) -> Held:
        """What etcd holds of a model. Raises UserError."""
        key, prefix = self.keyspace.make(PolicyKey(model)), self._history(model)
        async with self._bounded():
            outcome = await self.client.transact((), [Get(key), Get(prefix, prefix=True)])
        found, old = (result.entries for result in outcome.results)
        return _held(self.keyspace, model, found, old)

    async def change(
        self,
        model: str,
        decide: Callable[[Held], Change | None],
        *,
        retry: bool = True,
        if_generation: int | None = None,
        dry_run: bool = False,
    ) -> Result:
        """Do what `decide` says to what is held (None: nothing). If somebody else was faster, it is asked again, unless
        not to `retry`. Raises ConflictError, and UserError for what is no policy."""
        for attempt in range(_ATTEMPTS):
            held = await self.read(model)
            if if_generation is not None and held.generation != if_generation:
                raise ConflictError(_conflict(held, f"not {if_generation}"))
            change = decide(held)
            if change is None or (held.policy and held.stored and change.document == held.stored.document):
                document = held.stored.document if held.stored else None
                return Result(model, Done.UNCHANGED, held.generation, held, document)
            result, policy = _result(held, change)
            await self._check_path(held, policy)
            if dry_run or await self._write(held, change, result):
                return result
            if not retry:
                raise ConflictError(_conflict(await self.read(model), f"no longer {held.generation}"))
            await asyncio.sleep(random.uniform(0, min(_LONGEST_PAUSE, 0.002 * 2 ** min(attempt, 10))))
        raise ConflictError(f"others keep changing the policy of {model!r}; try again")

    async def _check_path(self, held: Held, policy: Policy | None) -> None:
        """Raises UserError where instances hold it from another folder, which no server can change under way."""
        path = policy.base_path if policy is not None else ""
        if not path or (held.policy is not None and held.policy.base_path == path):
            return
        async with self._bounded():
            entries = (await self.client.list(self.keyspace.assignments)).entries
        holders: dict[str, list[str]] = {}
        for entry in entries:
            key = self.keyspace.parse(entry.key)
            with contextlib.suppress(RecordError):
                one = decode_assignment(entry.value).models.get(held.model)
                if one is not None and isinstance(key, AssignmentKey):
                    holders.setdefault(one.base_path, []).append(key.instance)
        for old in sorted(holders.keys() - {path}):
            if held.raw is None:
                raise UserError(
                    f"model {clean(held.model)!r}: its policy is deleted, but {listed(holders[old])} "
                    f"{'are' if len(holders[old]) > 1 else 'is'} still assigned it from {clean(old)!r}; try again when "
                    "the leader has taken it away, which `modelplane events` tells"
                )
            raise UserError(
                f"model {clean(held.model)!r}: spec.basePath can't become {clean(path)!r}: {listed(holders[old])} "
                f"{'hold' if len(holders[old]) > 1 else 'holds'} it from {clean(old)!r}, and a server can't hold one "
                "model from two folders. Put the new versions beside the old ones, or give the other folder's model "
                f"another name; or, if it may be away for a while, `modelplane delete model {clean(held.model)}` "
                "first, and apply this then"
            )

    async def _write(self, held: Held, change: Change, result: Result) -> bool:
        now = time.time()
        key = self.keyspace.make(PolicyKey(held.model))
        compares = [unchanged(key, held.mod_revision)]
        operations: list[Operation] = []
        if held.raw is not None:
            operations.append(Put(self.keyspace.make(HistoryKey(held.model, held.generation)), held.raw))
        kept = sorted({*held.history, *((held.generation,) if held.generation else ())})[-HISTORY:]
        operations += [
            Delete(self.keyspace.make(HistoryKey(held.model, one))) for one in held.history if one not in kept
        ]
        if change.document is None:
            operations.append(Delete(key))
        else:
            # A policy that was created and deleted since we looked has left its generation here.
            compares.append(absent(self.keyspace.make(HistoryKey(held.model, result.generation))))
            stored = StoredPolicy(change.document, result.generation, now, self._by, self._message)
            operations.append(Put(key, encode_stored(stored)))
        event = Event(now, _EVENTS[result.done], held.model, text=self._told(change, result), by=self._by)
        event_key = self.keyspace.make(EventKey(event_id(now, random.getrandbits(16))))
        async with self._bounded(writing=True):
            operations.append(Put(event_key, encode_event(event), lease=await self._events()))
            return (await self.client.transact(compares, operations)).succeeded

    def _told(self, change: Change, result: Result) -> str:
        why = f" ({self._message})" if self._message else ""
        return clean(f"generation {result.generation} {result.done}: {change.text}{why}")

    async def _events(self) -> int:
        if not self._lease:
            self._lease = (await self.client.grant(EVENT_TTL)).id
        return self._lease

    def _history(self, model: str) -> str:
        return self.keyspace.make(HistoryKey(model, 0)).removesuffix("0")

    @asynccontextmanager
    async def _bounded(self, *, writing: bool = False) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self.client.config.timeout):
                yield
        except (TimeoutError, Unavailable):
            doubt = "; whether this was still written, `modelplane events` tells" if writing else ""
            raise UserError(f"{self._no_answer}{doubt}") from None


_EVENTS = {
    Done.CREATED: "PolicyApplied",
    Done.CONFIGURED: "PolicyApplied",
    Done.DELETED: "PolicyDeleted",
}


def _result(held: Held, change: Change) -> tuple[Result, Policy | None]:
    if change.document is None:
        return Result(held.model, Done.DELETED, held.generation, held, None), None
    try:
        policy = read_policy(change.document)
    except PolicyErrors as errors:
        raise UserError("; ".join(map(str, errors.problems))) from None
    if policy.name != held.model:
        raise UserError(f"metadata.name: it is {policy.name!r}, not {held.model!r}")
    done = Done.CREATED if held.raw is None else Done.CONFIGURED
    return Result(held.model, done, held.next_generation, held, change.document), policy


def _conflict(held: Held, instead: str) -> str:
    if held.raw is None:
        return f"the policy of {held.model!r} has been deleted meanwhile; nothing was written"
    who = f", by {held.stored.by}" if held.stored and held.stored.by else ""
    return f"the policy of {held.model!r} is at generation {held.generation}{who}, {instead}; nothing was written"


def _held(keyspace: Keyspace, model: str, found: tuple[KeyValue, ...], old: tuple[KeyValue, ...]) -> Held:
    history = {}
    for entry in old:
        key = keyspace.parse(entry.key)
        if isinstance(key, HistoryKey):
            history[key.generation] = entry.value
    history = dict(sorted(history.items()))
    if not found:
        return Held(model, history=history)
    (entry,) = found
    stored, policy, unreadable = None, None, ""
    try:
        stored = decode_stored(entry.value)
        stored, policy = read_stored(entry.value, model)
    except RecordError as error:
        unreadable = str(error)
    return Held(model, entry.mod_revision, entry.value, stored, policy, unreadable, history)


@asynccontextmanager
async def policy_store(config: FleetConfig, by: str = "", message: str = "") -> AsyncIterator[PolicyStore]:
    """Connect to a fleet's etcd."""
    config, otherwise = located(config)
    async with EtcdClient(config.etcd) as client:
        yield PolicyStore(client, Keyspace(config.prefix), silent(config, otherwise), by, message)
