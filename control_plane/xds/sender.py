"""Which responses of a stream go out now, in which order, and what a response holds.

Invariant: within one call clusters come before endpoints, those before what names clusters, and nothing goes before
its turn (order.py) or into a full window; what is held back merges in its Item. Only a router's configuration goes
before all of these if its turn has come already: what it needs is there, and if it no longer sends requests to a
cluster, it must not come after the endpoints that this cluster is left without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import inf

from control_plane.resources.resource import (
    CLUSTER,
    CLUSTER_LOAD_ASSIGNMENT,
    EXTENSION_CONFIG,
    LISTENER,
    ROUTE_CONFIGURATION,
    Resource,
)
from control_plane.xds.limits import Limits
from control_plane.xds.order import Order, Waiting
from control_plane.xds.subscription import Flight, Subscription
from control_plane.xds.table import ResourceTable
from control_plane.xds.wire import framed_size

_RANK = {CLUSTER: 0, CLUSTER_LOAD_ASSIGNMENT: 1, LISTENER: 2, ROUTE_CONFIGURATION: 3, EXTENSION_CONFIG: 4}
_LAST = len(_RANK)
_PAIR = frozenset({CLUSTER, CLUSTER_LOAD_ASSIGNMENT})

Look = Callable[[str, str], Resource | None]
Frame = Callable[[Subscription, Flight, Sequence[Resource], Iterable[str]], bytes]
HeldTooLongCallback = Callable[[str, tuple[str, ...], tuple[str, ...]], None]


class Sender:
    """Builds the responses of one stream. `sequence` numbers them from 1; the number is the nonce."""

    def __init__(
        self,
        table: ResourceTable,
        subscriptions: Mapping[str, Subscription],
        order: Order,
        limits: Limits,
        look: Look,
        frame: Frame,
        held_too_long: HeldTooLongCallback,
    ) -> None:
        self._table = table
        self._subscriptions = subscriptions
        self._order = order
        self._limits = limits
        self._look = look
        self._frame = frame
        self._held_too_long = held_too_long
        self._late: dict[str, None] = {}
        self._given_up = 0
        self.sequence = 0

    def outgoing(self, now: float) -> list[bytes]:
        """Everything that may go out now."""
        responses: list[bytes] = []
        by_rank = sorted(self._subscriptions.values(), key=lambda each: _RANK.get(each.type_url, _LAST))
        routers = [each for each in by_rank if each.type_url == EXTENSION_CONFIG]
        for subscription in (*routers, *by_rank):
            while (response := self._respond(subscription, now)) is not None:
                responses.append(response)
        if self._late:
            self._held_too_long(CLUSTER, tuple(self._late), ())
            self._late.clear()
        return responses

    def next_deadline(self) -> float | None:
        """When something that is held back now may go out without anything else happening."""
        times: list[float] = []
        for subscription in self._subscriptions.values():
            if not subscription.puts and not subscription.removals:
                continue
            if len(subscription.flights) >= self._window(subscription)[0]:
                times.append(subscription.last_sent_at + self._window(subscription)[1])
                continue
            if subscription.type_url not in _PAIR:
                times += (subscription.items[name].due_at + self._limits.gate_seconds for name in subscription.puts)
            # Removals queue in the order in which they became due, so the first has the first deadline.
            for name in subscription.removals:
                times.append(subscription.items[name].due_at + self._limits.removal_seconds)
                break
        return min(times, default=None)

    # What may go

    def _window(self, subscription: Subscription) -> tuple[int, float]:
        if subscription.type_url == CLUSTER_LOAD_ASSIGNMENT:
            return self._limits.endpoint_window, self._limits.endpoint_patience_seconds
        if subscription.type_url == CLUSTER and self._warming_at_client(subscription) > self._limits.warming_clusters:
            return 0, self._limits.endpoint_patience_seconds
        if subscription.whole is not None and (subscription.doubted or subscription.groups):
            # A further one would only repeat what is in doubt.
            return self._limits.window, self._limits.endpoint_patience_seconds
        return self._limits.window, self._limits.patience_seconds

    def _warming_at_client(self, clusters: Subscription) -> int:
        # What is due is warming too, as far as the order is concerned.
        warming = len(self._order.warming) - len(clusters.puts)
        self._given_up = min(self._given_up, warming)
        return warming - self._given_up

    def _window_open(self, subscription: Subscription, now: float) -> bool:
        size, patience = self._window(subscription)
        return len(subscription.flights) < size or now >= subscription.last_sent_at + patience

    def _puts(self, subscription: Subscription, now: float) -> Iterator[Resource]:
        if subscription.type_url in _PAIR:
            for name in subscription.puts:
                resource = self._look(subscription.type_url, name)
                assert resource is not None
                yield resource
            return
        ready = list(self._order.ready(subscription.type_url, now))
        whole = subscription.whole
        if whole is not None and whole.unknown and len(ready) < len(subscription.puts):
            # "Deleting Resources": what the client holds from before, and is left out, it would remove.
            return
        for waiting in ready:
            yield waiting.resource

    def _removals(self, subscription: Subscription, now: float) -> Iterator[str]:
        if subscription.type_url == CLUSTER:
            yield from self._cluster_removals(subscription, now)
        elif subscription.type_url == CLUSTER_LOAD_ASSIGNMENT:
            clusters = self._subscriptions.get(CLUSTER)
            for name in subscription.removals:
                # Endpoints go after their cluster; sent is enough, the stream is in order. But who asks is answered.
                held_back = clusters is not None and name in clusters.removals
                asked_for = subscription.items[name].forced
                if not held_back or asked_for or self._overdue(subscription, name, now):
                    yield name
        else:
            yield from subscription.removals

    def _cluster_removals(self, subscription: Subscription, now: float) -> Iterator[str]:
        names = iter(subscription.removals)
        first = next(names, None)
        # Looked at again only when an answer or a deadline may have changed something: there can be thousands.
        if first is None or not (self._order.released or self._overdue(subscription, first, now)):
            return
        for name in (first, *names):
            # Who asks is answered: it asks because it has not got it, so nothing that it holds can be in the way.
            if subscription.items[name].forced or self._order.free(name):
                yield name
            elif self._overdue(subscription, name, now):
                self._late[name] = None
                yield name
        # Only now: a full window or response leaves them to the next time.
        self._order.released = False

    def _overdue(self, subscription: Subscription, name: str, now: float) -> bool:
        return now >= subscription.items[name].due_at + self._limits.removal_seconds

    # Building

    def _respond(self, subscription: Subscription, now: float) -> bytes | None:
        group = None
        owed = False
        puts: list[Resource]
        removals: list[str] = []
        if self._window_open(subscription, now):
            group = subscription.next_group()
            puts, removals = self._choose(subscription, now) if group is None else self._of(subscription, group)
            owed = subscription.answer_owed and not subscription.puts
        else:
            puts = self._for_warming(subscription)
        if not (puts or removals or owed):
            return None
        if subscription.type_url == CLUSTER and self._warming_at_client(subscription) > self._limits.warming_clusters:
            # Waited for in vain, as with a client that never asks for their EDS: the next ones don't wait for them.
            self._given_up += self._warming_at_client(subscription)
        subscription.answer_owed = False
        self.sequence += 1
        moment = self._table.moment
        flight = Flight(self.sequence, {}, moment.revision, moment.generation, searching=group is not None)
        for resource in puts:
            self._put(subscription, flight, resource, now)
        for name in removals:
            subscription.sent(flight, name, None)
            if subscription.type_url == CLUSTER:
                self._order.cluster_gone(name)
        subscription.fly(flight, now)
        subscription.counters.responses += 1
        subscription.counters.sent += len(puts)
        subscription.counters.removed += len(removals)
        return self._frame(subscription, flight, puts, removals)

    def _choose(self, subscription: Subscription, now: float) -> tuple[list[Resource], list[str]]:
        """What may go, up to the size of a response; "Grouping Resources": one that holds everything is not split."""
        most = self._most(subscription)
        size = 0
        puts: list[Resource] = []
        removals: list[str] = []
        for resource in self._puts(subscription, now):
            size += framed_size(resource)
            if puts and size > most:
                return puts, removals
            puts.append(resource)
            if subscription.whole is not None:
                continue
            if subscription.type_url == CLUSTER and self._order.settled and len(puts) >= self._limits.warming_clusters:
                return puts, removals
            if subscription.type_url not in _PAIR:
                # Few and far between, so one at a time: then a NACK says which.
                return puts, removals
        for name in self._removals(subscription, now):
            size += 4 * len(name) + 8
            if (puts or removals) and size > most:
                self._order.released = True
                break
            removals.append(name)
        return puts, removals

    def _for_warming(self, endpoints: Subscription) -> list[Resource]:
        """What goes though the window is full: the endpoints of new clusters. The client has no older state to go on
        with, so there is nothing to merge, and a new model would wait for the answer to something else. But no more
        than a client warms at once, and nothing while a bad one is looked for: that would join what was parted."""
        in_flight = sum(len(flight.names) for flight in endpoints.flights.values())
        room = self._limits.warming_clusters - in_flight
        full = room <= 0 or len(endpoints.flights) >= self._limits.warming_window
        if endpoints.type_url != CLUSTER_LOAD_ASSIGNMENT or full or endpoints.groups:
            return []
        size = 0
        chosen: list[Resource] = []
        warming, puts = self._order.warming, endpoints.puts
        fewer: Iterable[str] = warming if len(warming) < len(puts) else puts
        for name in fewer:
            if warming.get(name) is None or name not in puts or endpoints.items[name].expected is not None:
                continue
            resource = self._look(CLUSTER_LOAD_ASSIGNMENT, name)
            assert resource is not None
            size += framed_size(resource)
            if chosen and (size > self._limits.response_bytes or len(chosen) >= room):
                break
            chosen.append(resource)
        return chosen

    def _of(self, subscription: Subscription, group: list[str]) -> tuple[list[Resource], list[str]]:
        """All of a group, or as much as fits; the rest is the next group."""
        most = self._most(subscription)
        size = 0
        puts: list[Resource] = []
        for place, name in enumerate(group):
            resource = self._look(subscription.type_url, name)
            if resource is None:
                continue
            size += framed_size(resource)
            if puts and size > most:
                subscription.groups.appendleft(group[place:])
                group = group[:place]
                break
            puts.append(resource)
        return puts, [name for name in group if name in subscription.removals]

    def _most(self, subscription: Subscription) -> float:
        return self._limits.response_bytes if subscription.whole is None else inf

    def _put(self, subscription: Subscription, flight: Flight, resource: Resource, now: float) -> None:
        name = resource.name
        if subscription.type_url in _PAIR:
            subscription.sent(flight, name, resource)
            if subscription.type_url == CLUSTER:
                self._after_cluster(flight, name, now)
            return
        key = (subscription.type_url, name)
        waiting = self._order.waiting.pop(key, None)
        if waiting is not None:
            self._tell_if_late(waiting)
        current = self._table.get(*key)
        unchanged = current is not None and current.version == resource.version
        newer = None if unchanged or waiting is None else waiting.newer
        subscription.sent(flight, name, resource, newer)
        self._order.sent(key, flight.sequence, resource)

    def _after_cluster(self, flight: Flight, name: str, now: float) -> None:
        """ "Resource warming": a cluster that was sent stays warming until EDS is sent again, changed or not. A client
        that has not asked for that EDS yet asks for it now, and would ignore what it has not asked for."""
        assignment = self._look(CLUSTER_LOAD_ASSIGNMENT, name)
        endpoints = self._subscriptions.get(CLUSTER_LOAD_ASSIGNMENT)
        self._order.cluster_sent(name, flight.sequence, has_endpoints=assignment is not None)
        if assignment is not None and endpoints is not None and endpoints.tracks(name):
            since = flight.names[name][1]
            endpoints.mark(name, assignment.version, assignment.version, since, now, forced=True)

    def _tell_if_late(self, waiting: Waiting) -> None:
        if not waiting.clusters:
            return
        resource, late = waiting.resource, tuple(waiting.clusters)
        self._held_too_long(resource.type_url, (resource.name,), late)
        for name in late:
            # What was waited for in vain once is not waited for again until it is sent again.
            self._order.cluster_gone(name)
