"""The leader: what the planner decides becomes keys in etcd. The asyncio shell around control_plane/planning/.

Invariants: only what was planned of a picture that has this leader's own last writes in it is written, in transactions
that are fenced with the term; whatever fails is planned again, never just sent again; nothing of it stops the rest of
the replica, and while nobody leads everything goes on with what was written last.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from control_plane.election import Election, Term
from control_plane.planning.plan import Decisions, Planner, Settings
from control_plane.planning.state import FleetState
from control_plane.planning.writes import batches, event_operations, operations, told
from registry.etcd import EtcdClient, EtcdError, LeaseNotFound, Operation, TooLarge
from registry.events import EVENT_TTL, Event
from registry.follow import Changes, Snapshot, Update, follow
from registry.keys import Keyspace, TrafficKey
from registry.rollouts import RolloutRecord

log = logging.getLogger(__name__)

DEBOUNCE = 0.02
"""Seconds from a change to its plan: what comes together is planned together."""
_SLICE = 10
"""Models that are planned without a break: Envoys are served by the same thread."""
_READ_SLICE = 50
_READ_BYTES = 20_000
"""Entries, and bytes of them, that are read without a break."""
_EVENT_LEASE = 3600.0
_FIRST_BACKOFF = 0.1
_MAX_BACKOFF = 5.0
_SEEN_WITHIN = 10.0
"""Seconds after which a write of its own that does not come back is waited for no longer."""


@dataclass(slots=True)
class Figures:
    """What a leader counts, for metrics. `seconds`: of CPU and waiting in planning. `rollouts`: by model, as the leader
    has them at the moment. `waiting` and these are nothing where nobody leads."""

    leads: bool = False
    rollouts: Mapping[str, RolloutRecord] = field(default_factory=dict)
    planned: int = 0
    writes: int = 0
    waiting: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Means:
    """What a leader works with. `suspects`: instances whose leases are lost and that are believed to live."""

    client: EtcdClient
    keyspace: Keyspace
    election: Election
    replica: str
    settings: Settings = field(default_factory=Settings)
    suspects: Callable[[], frozenset[str]] = frozenset


class Leader:
    """`run` leads whenever the election says so."""

    def __init__(self, means: Means, figures: Figures) -> None:
        """`figures` are kept up to date."""
        self._means, self.figures = means, figures

    async def run(self) -> None:
        """Lead in each term, until cancelled."""
        term: Term | None = None
        while True:
            term = await self._means.election.changed(term)
            if term is None:
                continue
            self.figures.leads = True
            try:
                leading = asyncio.create_task(self._lead(term), name="lead")
                ending = asyncio.create_task(self._means.election.changed(term), name="term")
                try:
                    await asyncio.wait((leading, ending), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for task in (leading, ending):
                        task.cancel()
                    results = await asyncio.gather(leading, ending, return_exceptions=True)
                for result in results:
                    if isinstance(result, Exception):
                        log.error("leading failed, beginning anew", exc_info=result)
                        # A fault that comes back at once must not take all of the processor.
                        await asyncio.sleep(_MAX_BACKOFF)
                        term = None
            finally:
                self.figures.leads, self.figures.waiting, self.figures.rollouts = False, 0, {}

    async def _lead(self, term: Term) -> None:
        rounds = _Rounds(self._means, term, self.figures)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(rounds.follow(), name="leader-follow")
            tasks.create_task(rounds.plan(), name="leader-plan")


class _Rounds:
    """One term: updates come in, rounds of planning go out."""

    def __init__(self, means: Means, term: Term, figures: Figures) -> None:
        self._means, self._term, self._figures = means, term, figures
        self._client, self._keyspace = means.client, means.keyspace
        self._state = FleetState(self._keyspace)
        self._inbox: list[Update] = []
        self._came = asyncio.Event()
        self._look_at: dict[str, float] = {}
        self._written, self._written_at = 0, 0.0
        # Grace times must not end because somebody set the clock.
        self._clock = time.time() - time.monotonic()
        self._event_lease: tuple[int, float] | None = None
        self._backoff = _FIRST_BACKOFF
        self._trouble = ""

    @property
    def now(self) -> float:
        """Unix seconds, which never go back within a term."""
        return self._clock + time.monotonic()

    async def follow(self) -> None:
        """All that happens goes to the inbox; it is taken from there only between two rounds."""
        async for update in follow(self._client, self._keyspace.prefix):
            self._inbox.append(update)
            self._came.set()

    async def plan(self) -> None:
        """Plan what was touched, and what is to be looked at again, as it comes."""
        while True:
            await self._wait()
            await self._take()
            if not self._has_seen_its_writes():
                continue
            models = self._due()
            if models or self._state.news:
                decisions = await self._decide(models)
                if not await self._write(decisions):
                    # As if it had not been planned: nobody knows how much of it was written.
                    self._state.touched |= models
                    await asyncio.sleep(self._backoff)
                    self._backoff = min(2 * self._backoff, _MAX_BACKOFF)
                    self._came.set()
                else:
                    self._backoff = _FIRST_BACKOFF

    async def _wait(self) -> None:
        until = min(self._look_at.values(), default=None)
        if self._written:
            until = min(until or self.now + _SEEN_WITHIN, self.now + _SEEN_WITHIN)
        delay = None if until is None else max(0.0, until - self.now)
        if not self._inbox:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._came.wait()
        self._came.clear()
        await asyncio.sleep(DEBOUNCE)

    async def _take(self) -> None:
        inbox, self._inbox = self._inbox, []
        for update in inbox:
            if isinstance(update, Snapshot) or (isinstance(update, Changes) and len(update.puts) > _READ_SLICE):
                entries = update.entries if isinstance(update, Snapshot) else update.puts
                await self._read(update.revision, entries)
                deletes = update.deletes if isinstance(update, Changes) else frozenset[str]()
                self._state.apply(Changes(update.revision, {}, deletes), self.now)
            else:
                self._state.apply(update, self.now)
            if isinstance(update, Snapshot) or (isinstance(update, Changes) and update.relisted):
                await self._date_traffic()
            if isinstance(update, Snapshot):
                # Who leads on goes through all of it once.
                self._state.touched |= self._state.known_models()
            if isinstance(update, Changes) and (update.relisted or update.revision >= self._written):
                # A wiped etcd may never come to that revision again.
                self._written = 0

    async def _date_traffic(self) -> None:
        """A list of the registry does not tell when each model's traffic was written."""
        revisions: dict[str, int] = {}
        try:
            for entry in (await self._client.list(self._keyspace.traffic)).entries:
                if isinstance(key := self._keyspace.parse(entry.key), TrafficKey):
                    revisions[key.model] = entry.mod_revision
        except EtcdError as error:
            log.warning("who knows of which traffic can't be told, and is not waited for: %s", error)
        self._state.traffic_revisions = revisions

    async def _read(self, revision: int, entries: Mapping[str, bytes]) -> None:
        part: dict[str, bytes] = {}
        room = _READ_BYTES
        for key, value in entries.items():
            part[key] = value
            room -= len(value)
            if room <= 0 or len(part) == _READ_SLICE:
                self._state.apply(Changes(revision, part, frozenset()), self.now)
                part, room = {}, _READ_BYTES
                await asyncio.sleep(0)
        self._state.apply(Changes(revision, part, frozenset()), self.now)

    def _has_seen_its_writes(self) -> bool:
        if self._written and time.monotonic() < self._written_at + _SEEN_WITHIN:
            return False
        self._written = 0
        return self._state.revision > 0

    def _due(self) -> set[str]:
        now = self.now
        due = {model for model, at in self._look_at.items() if at <= now}
        models, self._state.touched = self._state.touched | due, set()
        for model in models:
            self._look_at.pop(model, None)
        return models

    async def _decide(self, models: Iterable[str]) -> Decisions:
        means, began = self._means, time.monotonic()
        planner = Planner(
            self._state,
            self.now,
            suspects=means.suspects(),
            settings=means.settings,
            # What another term has added up is not comparable.
            source=f"{means.replica}/{self._term.created}",
        )
        for number, model in enumerate(sorted(models)):
            if number % _SLICE == 0:
                await asyncio.sleep(0)
            planner.model(model)
            self._figures.planned += 1
        decisions = planner.decisions()
        self._look_at |= decisions.look_at
        self._figures.waiting, self._figures.rollouts = len(self._state.waiting), self._state.rollouts
        self._figures.seconds += time.monotonic() - began
        return decisions

    # -- writing

    async def _write(self, decisions: Decisions) -> bool:
        """Whether all of it was written."""
        if not decisions:
            return True
        refused = list[Event]()
        try:
            for batch in batches(operations(decisions, self._keyspace)):
                try:
                    if not await self._transact(batch):
                        return False
                except TooLarge as error:
                    # It is alone in its batch, and must not keep everything else from being written.
                    keys = ", ".join(one.key for one in batch)
                    log.error("%s can't be written, too many models: %s", keys, error)
                    refused.append(Event(self.now, "WriteRefused", text=f"{keys} is too large for etcd: {error}"))
        except EtcdError as error:
            self._say(f"{error}")
            return False
        self._trouble = ""
        happened = (*decisions.events, *refused)
        events = told(happened, f"leader {self._means.replica}")
        for event in happened:
            _log(event)
        await self._write_events(events)
        return True

    async def _transact(self, batch: Sequence[Operation]) -> bool:
        outcome = await self._client.transact(self._term.compares, batch)
        if not outcome.succeeded:
            log.warning("a write as the leader was refused: another one leads, or etcd has lost who does")
            self._means.election.doubt()
            return False
        self._figures.writes += 1
        self._written, self._written_at = outcome.revision, time.monotonic()
        return True

    async def _write_events(self, events: Sequence[Event]) -> None:
        """They are for people: nothing is held up for their sake."""
        for _ in range(2):
            try:
                lease = await self._lease()
                for batch in batches(event_operations(events, self._keyspace, lease, random.getrandbits(16))):
                    if not await self._transact(batch):
                        return
                return
            except LeaseNotFound:
                self._event_lease = None
            except EtcdError as error:
                self._say(f"{len(events)} events are lost: {error}")
                return

    async def _lease(self) -> int:
        if self._event_lease is None or time.monotonic() >= self._event_lease[1]:
            granted = await self._client.grant(EVENT_TTL)
            self._event_lease = granted.id, time.monotonic() + _EVENT_LEASE
        return self._event_lease[0]

    def _say(self, trouble: str) -> None:
        """Once, not at every attempt."""
        if trouble != self._trouble:
            self._trouble = trouble
            log.warning("what was decided could not be written, planning again: %s", trouble)


def _log(event: Event) -> None:
    about = [f"model {event.model}"] if event.model else []
    about += [f"version {event.version}"] if event.version is not None else []
    about += [f"on {event.instance}" if event.model else f"instance {event.instance}"] if event.instance else []
    log.info("%s: %s%s", " ".join(about), event.kind, f": {event.text}" if event.text else "")
