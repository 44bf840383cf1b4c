"""One stream of either variant of the protocol, aggregated or not, without I/O: requests, changes and `now` go in,
serialised responses and events come out. What the variants have in common; delta.py and sotw.py parse and frame.

Invariants: a name that is subscribed to is either with the client as the table has it, or counted as outstanding;
nothing that the client has is sent again unless the protocol asks for it; memory follows what is unsettled. Each
branch names its rule in Envoy's "xDS REST and gRPC protocol" (`docs/root/api-docs/xds_protocol.rst`) by the heading.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from control_plane.resources.resource import (
    CLUSTER,
    CLUSTER_LOAD_ASSIGNMENT,
    LISTENER,
    Resource,
)
from control_plane.xds.blame import names_in
from control_plane.xds.events import Acquitted, HeldTooLong, Refused, StreamEvent, TypeStatus
from control_plane.xds.gates import PAIR, Gates
from control_plane.xds.holdings import Holdings, holdings, type_status
from control_plane.xds.limits import Limits
from control_plane.xds.names import Names
from control_plane.xds.order import Order
from control_plane.xds.outstanding import Outstanding
from control_plane.xds.sender import Sender
from control_plane.xds.subscription import UNKNOWN, WILDCARD, Counters, Flight, Subscription
from control_plane.xds.table import BEGINNING, Change, Moment, ResourceTable, TableChange

ROOTS = frozenset({LISTENER, CLUSTER})
"""The types of which a client may want all that there is."""


class ProtocolError(ValueError):
    """A request that the protocol doesn't allow; the message is for the client's log."""


class Stream(ABC):
    """The machine. `now` is monotonic seconds everywhere. The table must be ready, and every later update of it must
    reach `notice` before anything else is called here.

    `only_type` is for the services of one type, where requests may leave the type out; None on an aggregated stream.
    """

    def __init__(
        self, table: ResourceTable, now: float, limits: Limits | None = None, only_type: str | None = None
    ) -> None:
        self._table = table
        self._limits = limits or Limits()
        self._only_type = only_type
        self._generation = table.moment.generation
        self._settle_until = now + self._limits.settle_seconds
        self._outstanding = Outstanding()
        self._order = Order()
        self._subscriptions: dict[str, Subscription] = {}
        self._events: list[StreamEvent] = []
        self._gates = Gates(table, self._subscriptions, self._order, self._limits, only_type)
        self._taken: set[str] = set()
        self._sender = Sender(
            table, self._subscriptions, self._order, self._limits, self._look, self._frame, self._held_too_long
        )
        self.node = ""
        self.node_cluster = ""

    def receive(self, request: Any, now: float) -> None:
        """Take a request of the variant's type. Raises ProtocolError; the stream is to be ended then."""
        # "Basic Protocol Overview": only the first request is sure to carry the node.
        if request.HasField("node"):
            self.node, self.node_cluster = self.node or request.node.id, self.node_cluster or request.node.cluster
        type_url = self._type_of(request)
        self._take(type_url, request, now)
        self._gates.let_wait(now, self._sender.sequence)

    def asks_for(self, request: Any) -> tuple[str, Sequence[str]]:
        """The type and the names that `receive` would subscribe to; WILDCARD stands for all. Raises ProtocolError."""
        type_url = self._type_of(request)
        names = self._new_names(type_url, request)
        if not names and type_url in ROOTS and type_url not in self._subscriptions:
            names = (WILDCARD,)
        return type_url, names

    def _type_of(self, request: Any) -> str:
        type_url = request.type_url or self._only_type
        if not type_url:
            # discovery.proto: the type may be left out only where the service's name says it.
            raise ProtocolError("a request on an aggregated stream must have a type_url")
        if self._only_type not in (None, type_url):
            raise ProtocolError(f"this service serves {self._only_type}, not {type_url}")
        return str(type_url)

    @abstractmethod
    def _new_names(self, type_url: str, request: Any) -> Sequence[str]:
        """The names that a request subscribes to."""

    @abstractmethod
    def _take(self, type_url: str, request: Any, now: float) -> None:
        """Take the answer and the subscriptions of a request."""

    @abstractmethod
    def _frame(
        self, subscription: Subscription, flight: Flight, puts: Sequence[Resource], removals: Iterable[str]
    ) -> bytes:
        """A serialised response that tells of these."""

    def notice(self, change: TableChange, now: float) -> bool:
        """Take an update of the table. Costs what it changed. Whether the stream has something to send."""
        if change.moment.generation <= self._generation:
            return False
        self._generation = change.moment.generation
        concerned = False
        for one in change.changes:
            subscription = self._subscriptions.get(one.type_url)
            if subscription is not None and subscription.tracks(one.name):
                self._changed(subscription, one, change.moment, now)
                concerned = True
        if concerned:
            self._gates.let_wait(now, self._sender.sequence)
        return concerned

    def _changed(self, subscription: Subscription, change: Change, moment: Moment, now: float) -> None:
        if change.withheld:
            self._withhold(subscription, change.name, moment, now)
            return
        held = UNKNOWN if change.was_withheld else None if change.old is None else change.old.version
        self._mark(subscription, change.name, held, moment, now)
        if change.trial and change.type_url in PAIR:
            subscription.by_itself(change.name)

    def outgoing(self, now: float) -> list[bytes]:
        """The serialised responses that are to be written now, in this order."""
        self._settle(now)
        self._gates.give_up(now)
        for name, held in self._gates.endpoints_again(now):
            self._mark(self._subscriptions[CLUSTER_LOAD_ASSIGNMENT], name, held, self._table.moment, now, forced=True)
        self._gates.let_wait(now, self._sender.sequence)
        return self._sender.outgoing(now)

    def next_deadline(self) -> float | None:
        """When `outgoing` is to be called again if nothing else happens; None: no need."""
        times = [time for time in (self._gates.next_deadline(), self._sender.next_deadline()) if time is not None]
        if not self._order.settled:
            times.append(self._settle_until)
        return min(times, default=None)

    def events(self) -> list[StreamEvent]:
        """What there is to tell since the last call."""
        events, self._events = self._events, []
        return events

    def converged_revision(self, now: float) -> int:
        """The newest registry revision whose consequences the client has acknowledged; 0 while that can't be known."""
        self._settle(now)
        if not self._order.settled or self._gates.is_away_from_clusters(now):
            return 0
        return self._table.converged(self._outstanding.lowest())

    def subscribes(self, type_url: str, names: Iterable[str]) -> bool:
        """Whether the client has subscribed to any of these names by name."""
        subscription = self._subscriptions.get(type_url)
        return subscription is not None and not subscription.names.isdisjoint(names)

    @property
    def unanswered(self) -> int:
        """How many responses the client has neither ACKed nor NACKed."""
        return sum(len(subscription.flights) for subscription in self._subscriptions.values())

    def counters(self) -> Mapping[str, Counters]:
        """What was sent and answered so far, by type URL; live."""
        return {type_url: subscription.counters for type_url, subscription in self._subscriptions.items()}

    def status(self) -> Mapping[str, TypeStatus]:
        """How each type stands."""
        return {type_url: type_status(subscription) for type_url, subscription in self._subscriptions.items()}

    def holdings(self) -> Mapping[str, Holdings]:
        """What the client has of each type, name by name; a copy."""
        return {type_url: holdings(subscription) for type_url, subscription in self._subscriptions.items()}

    def _settle(self, now: float) -> None:
        """A client that reconnects subscribes type by type, and may hold something old of a type that is yet to come:
        until then it is not known what it holds, nor which clusters that requires."""
        if self._order.settled:
            return
        told = {self._only_type} if self._only_type is not None else set(self._table.types())
        if now >= self._settle_until or self._subscriptions.keys() >= told:
            self._order.settled = self._order.released = True

    # Requests

    def _begin(self, type_url: str, *, removable: bool = True) -> Subscription:
        """The state of a type that the client asks for now for the first time."""
        names = Names(self._table.rosters, type_url)
        subscription = Subscription(type_url, self._outstanding, names, removable)
        self._subscriptions[type_url] = subscription
        return subscription

    def _introduce(
        self, subscription: Subscription, name: str, claimed: str | None, now: float, *, forced: bool
    ) -> None:
        self._note_taken(subscription, name)
        entry = self._table.entries(subscription.type_url).get(name)
        if entry is not None and subscription.type_url not in PAIR and claimed is not None:
            known = claimed == entry.resource.version
            self._order.claimed((subscription.type_url, name), entry.resource if known else None)
        if claimed is not None and self._claimed(subscription, name, claimed) and not forced:
            return
        if entry is None:
            # "Knowing When a Requested Resource Does Not Exist" (delta): named ones are answered as removed.
            since = BEGINNING if claimed is not None else self._table.moment
            self._mark(subscription, name, claimed, since, now, forced=claimed is None)
        elif claimed is None:
            # Who asks is answered, even if the resource is gone again before the answer goes out.
            self._mark(subscription, name, None, entry.created, now, forced=name in subscription.names)
        elif claimed != entry.resource.version:
            self._mark(subscription, name, claimed, BEGINNING, now)
        elif forced:
            self._mark(subscription, name, claimed, self._table.moment, now, forced=True)

    def _claimed(self, subscription: Subscription, name: str, version: str) -> bool:
        """A client that reconnects holds this version, so it has acknowledged it. True if the name is withheld: then
        it is to keep what it has."""
        entry = self._table.entries(subscription.type_url).get(name)
        if entry is not None and entry.resource.version == version:
            self._good(entry.resource, self._table.moment.generation)
        record = self._table.quarantined.get((subscription.type_url, name))
        if record is not None and record.version == version:
            self._events.append(Acquitted(self.node, subscription.type_url, name, version))
        return entry is None and record is not None

    def _good(self, resource: Resource, generation: int) -> None:
        if self._table.acknowledged(resource, generation):
            self._events.append(Acquitted(self.node, resource.type_url, resource.name, resource.version))

    def _subscribe(self, subscription: Subscription, names: Any, now: float) -> None:
        subscription.explicit |= bool(names)
        for name in names:
            if name == WILDCARD:
                self._subscribe_wildcard(subscription, now)
                continue
            entry = self._table.entries(subscription.type_url).get(name)
            known = subscription.tracks(name)
            if not known:
                self._note_taken(subscription, name)
            subscription.names.add(name)
            # "Subscribing to Resources": answered even if we believe that the client has it: it may have forgotten.
            since = entry.created if entry is not None and not known else self._table.moment
            held = entry.resource.version if entry is not None and known else None
            self._mark(subscription, name, held, since, now, forced=True)

    def _subscribe_wildcard(self, subscription: Subscription, now: float) -> None:
        if subscription.wildcard:
            return
        subscription.wildcard = True
        for name, entry in self._table.entries(subscription.type_url).items():
            if name not in subscription.names:
                self._mark(subscription, name, None, entry.created, now)

    def _forget(self, subscription: Subscription, name: str) -> None:
        subscription.forget(name)
        if subscription.type_url == CLUSTER:
            self._order.cluster_gone(name)
        elif subscription.type_url == CLUSTER_LOAD_ASSIGNMENT:
            self._order.endpoints_forgotten(name)
            self._taken.discard(name)
        else:
            self._order.forget((subscription.type_url, name))

    # Answers

    def _answered(self, type_url: str, request: Any, now: float) -> None:
        subscription = self._subscriptions.get(type_url)
        flight = subscription.flights.pop(request.response_nonce, None) if subscription is not None else None
        # "ACK and NACK": the presence of error_detail, and nothing else, makes it a NACK.
        if request.HasField("error_detail"):
            self._refused(type_url, subscription, flight, request.error_detail, now)
        elif subscription is not None and flight is not None:
            subscription.counters.acked += 1
            self._acked(subscription, flight)

    def _acked(self, subscription: Subscription, flight: Flight) -> None:
        subscription.acked(flight)
        for resource, _ in flight.names.values():
            if resource is not None:
                self._good(resource, flight.generation)
        if subscription.type_url == CLUSTER_LOAD_ASSIGNMENT:
            self._order.endpoints_acked(flight.names, flight.sequence)
            self._gates.endpoints_acked(flight.names)
        elif subscription.type_url != CLUSTER:
            for name in flight.names:
                self._order.acked((subscription.type_url, name), flight.sequence)

    def _refused(
        self, type_url: str, subscription: Subscription | None, flight: Flight | None, error: Any, now: float
    ) -> None:
        names: dict[str, tuple[Resource | None, Moment]] = {}
        searching = proven = False
        if subscription is not None:
            subscription.counters.nacked += 1
            subscription.counters.last_error = error.message
        if subscription is not None and flight is not None:
            names = flight.names
            named = names_in(error.message, names) if len(names) > 1 else ()
            taken = self._taken if type_url == CLUSTER else ()
            searching = subscription.nacked(flight, now, named, self._withheld(type_url, names), taken)
            proven = flight.of_one and not searching
            if proven:
                subscription.explain(next(iter(names)), error.message)
            if type_url == CLUSTER_LOAD_ASSIGNMENT and not searching:
                for name in names:
                    # No ACK will come; to Envoy (1.40) a refusal ends the warming of its cluster too.
                    self._order.cluster_gone(name)
            if type_url == CLUSTER and not searching:
                self._gates.suspect(names, now)
        self._report(type_url, names, error, searching=searching, proven=proven)

    def _report(
        self,
        type_url: str,
        names: Mapping[str, tuple[Resource | None, Moment]],
        error: Any,
        *,
        searching: bool,
        proven: bool,
    ) -> None:
        resources = [resource for resource, _ in names.values() if resource is not None]
        models = tuple(sorted({resource.model for resource in resources if resource.model}))
        version = resources[0].version if proven and resources else ""
        self._events.append(
            Refused(self.node, type_url, tuple(names), models, searching, error.code, error.message, version)
        )

    def _note_taken(self, subscription: Subscription, name: str) -> None:
        """Endpoints are asked for anew. Envoy does that of the good clusters in a response that it refuses, too."""
        if subscription.type_url == CLUSTER_LOAD_ASSIGNMENT and self._order.warming.get(name) is not None:
            self._taken.add(name)

    def _withheld(self, type_url: str, names: Iterable[str]) -> dict[str, str]:
        if not self._table.quarantined:
            return {}
        records = {name: self._table.withheld(type_url, name) for name in names}
        return {name: record.version for name, record in records.items() if record is not None}

    # What is due

    def _look(self, type_url: str, name: str) -> Resource | None:
        """What the client is to have of a name."""
        return self._table.get(type_url, name)

    def _mark(
        self,
        subscription: Subscription,
        name: str,
        held: Any,
        since: Moment,
        now: float,
        *,
        forced: bool = False,
    ) -> None:
        resource = self._look(subscription.type_url, name)
        key = (subscription.type_url, name)
        waiting = self._order.waiting.get(key)
        version = None if resource is None else resource.version
        if waiting is not None and not forced and version not in (None, subscription.items[name].expected):
            # The older one goes out first: were it replaced for ever, a stream of updates would starve both.
            waiting.newer = waiting.newer or since
            return
        item = subscription.mark(name, version, held, since, now, forced=forced)
        due = item.due is not None
        if subscription.type_url == CLUSTER:
            if resource is None:
                self._order.cluster_removed(name)
            elif due:
                self._order.cluster_due(name)
            else:
                self._order.cluster_not_due(name)
        elif subscription.type_url != CLUSTER_LOAD_ASSIGNMENT:
            if resource is not None and not item.on_its_way and version == item.expected:
                self._order.recognised(key, resource)
            if resource is None or not due:
                self._order.waiting.pop(key, None)
            elif waiting is not None and version != waiting.resource.version:
                # Asked for again, so due although the client may hold it: after the older one.
                waiting.newer = waiting.newer or since

    def _withhold(self, subscription: Subscription, name: str, since: Moment, now: float) -> None:
        """The name is quarantined and there is no good version of it: the client keeps what it has, and nothing waits
        for it."""
        waits = subscription.withhold(name)
        if waits:
            self._mark(subscription, name, None, since, now, forced=True)
        if subscription.type_url in PAIR:
            # Of endpoints too: no ACK of them will come, and a refusal ends the cluster's warming as well (Envoy 1.40).
            self._order.cluster_gone(name)
        else:
            self._order.waiting.pop((subscription.type_url, name), None)
        self._order.released = True

    def _held_too_long(self, type_url: str, names: tuple[str, ...], waiting_for: tuple[str, ...]) -> None:
        self._events.append(HeldTooLong(self.node, type_url, names, waiting_for))
