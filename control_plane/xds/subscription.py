"""One resource type on one stream: what the client subscribed to, and what is unsettled about each name.

Invariant: a name that the client is subscribed to and that has no Item is with the client exactly as the table has it
(or absent, as in the table). So a stream remembers differences only: its memory does not grow with the table, and any
number of changes to one name while the client is slow merge into one Item, of which only the newest state is sent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Container, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from control_plane.resources.resource import Resource
from control_plane.xds.names import Names
from control_plane.xds.outstanding import Outstanding
from control_plane.xds.table import Moment
from control_plane.xds.whole import WholeState

WILDCARD = "*"
MAX_FLIGHTS = 64
"""Responses whose answer is remembered one by one; beyond that the oldest are folded together."""


class Unknown(Enum):
    """What a client holds after a NACK: a NACK never means that nothing was applied."""

    UNKNOWN = "UNKNOWN"


UNKNOWN = Unknown.UNKNOWN


@dataclass(slots=True)
class Item:
    """One unsettled name.

    `expected` is the version that the client will hold once it has ACKed all that was sent (None: nothing);
    `gone`: the table has lost it, and the variant has no way to say so;
    `due` the earliest moment of which nothing was sent yet; `due_at` when it became due (monotonic seconds).
    `refused` is the version that the client has refused, and `why` what it said; `refused_since` None with it:
    quarantined, so it is not outstanding, but it would be refused again.
    """

    expected: str | Unknown | None
    due: Moment | None = None
    due_at: float = 0.0
    forced: bool = False
    flying: int = 0
    last_sent: int = 0
    gone: bool = False
    refused: str | None = None
    refused_at: int = 0
    refused_since: Moment | None = None
    why: str = ""

    @property
    def on_its_way(self) -> bool:
        """Due, or sent and not yet answered."""
        return self.due is not None or self.flying > 0


@dataclass(slots=True)
class Flight:
    """A response that was sent and not answered yet: name -> (resource or None for removed, since when outstanding).

    `revision` and `generation` are the table's when it was made. `searching`: it is one of those that look for the
    name to blame. `forgotten`: it held other names too, which the client has dropped since.
    """

    sequence: int
    names: dict[str, tuple[Resource | None, Moment]]
    revision: int = 0
    generation: int = 0
    searching: bool = False
    version: str = ""
    """Its version_info, where responses have one."""
    forgotten: bool = False

    @property
    def of_one(self) -> bool:
        """Whether it was a response of one name, which alone can be to blame for a refusal."""
        return len(self.names) == 1 and not self.forgotten

    @property
    def nonce(self) -> str:
        """By which the client's answer refers to it."""
        return str(self.sequence)


@dataclass(slots=True)
class Counters:
    """For the status page and the metrics."""

    responses: int = 0
    sent: int = 0
    removed: int = 0
    acked: int = 0
    nacked: int = 0
    last_error: str = ""


@dataclass(slots=True)
class Subscription:
    """The state of one type. `puts` and `removals` queue the names of the items that are due, oldest first; `groups`
    those among them that go in responses of their own, because one of them is bad. `removable`: the variant has a way
    to say that a resource is gone; `whole`: what a response holds, of a type whose responses hold everything;
    `doubted`: one in flight repeats what was refused, and its answer tells more."""

    type_url: str
    outstanding: Outstanding
    names: Names
    removable: bool = True
    whole: WholeState | None = None
    wildcard: bool = False
    explicit: bool = False
    answer_owed: bool = False
    items: dict[str, Item] = field(default_factory=dict)
    puts: dict[str, None] = field(default_factory=dict)
    removals: dict[str, None] = field(default_factory=dict)
    groups: deque[list[str]] = field(default_factory=deque)
    flights: dict[str, Flight] = field(default_factory=dict)
    last_sent_at: float = float("-inf")
    counters: Counters = field(default_factory=Counters)
    newest_nonce: str = ""
    doubted: bool = False
    unknown_since: Moment | None = None
    sent_revision: int = 0
    acked_revision: int = 0
    nacked_revision: int = 0

    def tracks(self, name: str) -> bool:
        """Whether the client wants this name."""
        return self.wildcard or name in self.names

    def mark(
        self,
        name: str,
        target: str | None,
        held: str | Unknown | None,
        since: Moment,
        now: float,
        *,
        forced: bool = False,
    ) -> Item:
        """The table's version of `name` is `target` (None: removed); queue it unless the client has or refused it.

        `held` is what the client has if the name was settled until now; `forced` sends it whatever the client has.
        """
        item = self.items.get(name)
        if item is None:
            item = self.items[name] = Item(expected=held)
        item.forced |= forced
        if target is None and not self.removable:
            # Nothing can be said, so nothing is owed: the client keeps it for as long as something names it.
            item.expected, item.forced, item.gone = None, False, True
            self._undue(name, item)
            self._forgive(item)
            self._drop_if_settled(name, item)
            return item
        item.gone = False
        known_bad = target is not None and target == item.refused and item.expected is UNKNOWN
        if not item.forced and (target == item.expected or known_bad):
            self._undue(name, item)
            self._drop_if_settled(name, item)
            return item
        if item.due is None:
            item.due, item.due_at = since, now
            self.outstanding.add(since)
        elif since < item.due:
            self.outstanding.discard(item.due)
            item.due = since
            self.outstanding.add(since)
        queue, other = (self.removals, self.puts) if target is None else (self.puts, self.removals)
        other.pop(name, None)
        queue[name] = None
        return item

    def sent(self, flight: Flight, name: str, resource: Resource | None, newer: Moment | None = None) -> None:
        """`name` went out in `flight`; `newer` is since when something newer than that is due already, if it is."""
        item = self.items[name]
        assert item.due is not None
        flight.names[name] = (resource, item.due)
        item.forced = False
        item.expected = None if resource is None else resource.version
        item.flying += 1
        item.last_sent = flight.sequence
        item.due = newer
        if newer is None:
            self.puts.pop(name, None)
            self.removals.pop(name, None)
        else:
            self.outstanding.add(newer)

    def fly(self, flight: Flight, now: float) -> None:
        """The response is on its way."""
        self.flights[flight.nonce] = flight
        self.newest_nonce = flight.nonce
        self.sent_revision = flight.revision
        self.last_sent_at = now
        if len(self.flights) > MAX_FLIGHTS:
            self._fold()

    def acked(self, flight: Flight) -> None:
        """The client has applied the whole response."""
        self.acked_revision = flight.revision
        if self.whole is not None:
            self.whole.acked(flight.names, flight.sequence)
        if self.unknown_since is not None:
            self.outstanding.discard(self.unknown_since)
            self.unknown_since = None
        for name, (_, since) in flight.names.items():
            self.outstanding.discard(since)
            item = self.items[name]
            item.flying -= 1
            if flight.sequence > item.refused_at:
                self._forgive(item)
            self._drop_if_settled(name, item)

    def nacked(
        self,
        flight: Flight,
        now: float,
        named: Collection[str] = (),
        withheld: Mapping[str, str] | None = None,
        taken: Container[str] = (),
    ) -> bool:
        """The client has refused the response. Which of its names is to blame only a response of one name can tell,
        so what was in a larger one is queued again; True then. `named`, those that the client's message contains, go
        by themselves and the rest together; if that didn't help, or the message names nobody or all, in halves. This
        ends: each is smaller than what was refused.

        A single name stays outstanding, refused, until a newer version is ACKed. `withheld`: names that are
        quarantined, with the version that was refused; nothing of theirs is outstanding. `taken`: names of which the
        client shows that it has taken them, in spite of its refusal.
        """
        self.nacked_revision = flight.revision
        if self.whole is not None:
            # What a client that reconnects asked for before it was sent proves nothing.
            believed = not (flight.of_one or self.whole.unknown)
            self.whole.refused(flight.names, flight.sequence, taken if believed else ())
        again: list[str] = []
        for name, (resource, since) in flight.names.items():
            item = self.items[name]
            version = None if resource is None else resource.version
            item.flying -= 1
            if item.gone:
                self.outstanding.discard(since)
                self._drop_if_settled(name, item)
                continue
            newest = item.last_sent <= flight.sequence
            if newest:
                item.expected = UNKNOWN
            if withheld and name in withheld:
                self.outstanding.discard(since)
                if version == withheld[name] and flight.of_one:
                    item.refused, item.refused_at = version, flight.sequence
                self.answer_owed |= self.unknown_since is not None
                self._drop_if_settled(name, item)
                continue
            if newest and not flight.of_one:
                self._due_again(name, item, version, since, now)
                again.append(name)
                continue
            if not flight.of_one:
                self._leave_to_newer(name, item, flight, since)
                continue
            if item.refused_since is not None:
                self.outstanding.discard(max(since, item.refused_since))
                since = min(since, item.refused_since)
            item.refused, item.refused_since, item.refused_at = version, since, flight.sequence
        self._search(again, [name for name in again if name in named], whole=not flight.searching)
        return bool(again)

    def _leave_to_newer(self, name: str, item: Item, flight: Flight, since: Moment) -> None:
        """Nothing is proven of what this flight said of the name, and something newer was sent: what becomes of that
        counts for both."""
        for later in reversed(self.flights.values()):
            if later.sequence > flight.sequence and name in later.names:
                resource, other = later.names[name]
                self.outstanding.discard(max(since, other))
                later.names[name] = (resource, min(since, other))
                return
        if item.due is not None:
            self._due_again(name, item, None, since, item.due_at)
        elif item.refused_since is not None:
            self.outstanding.discard(max(since, item.refused_since))
            item.refused_since = min(since, item.refused_since)
        else:
            self.outstanding.discard(since)
            self._drop_if_settled(name, item)

    def _search(self, names: list[str], named: list[str], *, whole: bool) -> None:
        if len(named) == len(names):
            named = []
        known = set(named)
        rest = [name for name in names if name not in known]
        half = len(rest) if named and whole else (len(rest) + 1) // 2
        halves = [group for group in (rest[:half], rest[half:]) if group]
        suspects = [[name] for name in named]
        # Where a response holds everything, the others come first: a client that reconnects loses what is left out.
        self.groups.extend(suspects + halves if self.whole is None else halves + suspects)

    def withhold(self, name: str) -> bool:
        """Nothing of this name is to be sent any longer, and nothing of it is outstanding. True if the client has
        asked for it, holds nothing of it, and waits for an answer."""
        item = self.items.get(name)
        if item is None:
            return False
        # What the client holds besides is settled only by a response that it takes.
        self.answer_owed |= self.unknown_since is not None
        waits = item.forced and item.expected is None
        item.forced = False
        self._undue(name, item)
        if item.refused_since is not None:
            self.outstanding.discard(item.refused_since)
            item.refused_since = None
        self._drop_if_settled(name, item)
        return waits

    def by_itself(self, name: str) -> None:
        """What is due of this name is to go by itself, so that a refusal can be of nothing else."""
        if name in self.puts:
            self.groups.append([name])

    def holds_unknown(self, since: Moment) -> None:
        """The client may hold what we know nothing of; outstanding until it ACKs a response that holds everything."""
        self.unknown_since = since
        self.outstanding.add(since)
        if self.whole is not None:
            self.whole.unknown = True

    def next_group(self) -> list[str] | None:
        """Names that are to go in a response of their own, if there are such: those of them that are still due."""
        while self.groups:
            group = [name for name in self.groups.popleft() if name in self.puts or name in self.removals]
            if group:
                return group
        return None

    def _due_again(self, name: str, item: Item, version: str | None, since: Moment, now: float) -> None:
        if item.due is not None:
            # The table has moved on meanwhile: that goes out instead.
            self.outstanding.discard(max(since, item.due))
            item.due = min(since, item.due)
            return
        item.due, item.due_at = since, now
        (self.removals if version is None else self.puts)[name] = None

    def forget(self, name: str) -> None:
        """The client no longer wants this name."""
        if self.whole is not None:
            self.whole.forget(name)
        item = self.items.pop(name, None)
        if item is None:
            return
        self._undue(name, item)
        self._forgive(item)
        if item.flying:
            for flight in self.flights.values():
                sent = flight.names.pop(name, None)
                if sent is not None:
                    flight.forgotten = True
                    self.outstanding.discard(sent[1])

    def refused(self) -> Iterator[str]:
        """The names that the client has refused and not ACKed since. Linear in what is unsettled."""
        return (name for name, item in self.items.items() if item.refused or item.refused_since is not None)

    def explain(self, name: str, why: str) -> None:
        """What the client said of a name that it refused by itself."""
        item = self.items.get(name)
        if item is not None:
            item.why = why

    def _undue(self, name: str, item: Item) -> None:
        if item.due is not None:
            self.outstanding.discard(item.due)
            item.due = None
        self.puts.pop(name, None)
        self.removals.pop(name, None)

    def _forgive(self, item: Item) -> None:
        if item.refused_since is not None:
            self.outstanding.discard(item.refused_since)
        item.refused = item.refused_since = None

    def _drop_if_settled(self, name: str, item: Item) -> None:
        if not item.on_its_way and item.refused is None and item.refused_since is None:
            del self.items[name]

    def _fold(self) -> None:
        """Merge the two oldest flights, so that what is remembered of a client that never answers stays bounded by
        names: the answer to the younger one then counts for both."""
        first, second, *_ = self.flights.values()
        self.merge(first, second)

    def merge(self, first: Flight, second: Flight) -> None:
        """Let the answer to `second` count for the older `first` too."""
        del self.flights[first.nonce]
        into = second.names
        for name, (resource, since) in first.names.items():
            known = into.get(name)
            if known is None:
                into[name] = (resource, since)
                continue
            self.outstanding.discard(max(since, known[1]))
            into[name] = (known[0], min(since, known[1]))
            self.items[name].flying -= 1
