"""The state-of-the-world variant of the protocol ("SotW", DiscoveryRequest and DiscoveryResponse).

Invariants: a response of LDS or CDS holds everything that the client is to have after it, so that leaving something out
means removing it; one of another type holds what is due and removes nothing. version_info is a hash of the response's
content, the same on every replica. A request whose nonce is stale subscribes to nothing and answers only the response
that it names: what the client wants comes again with its answer to the newest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from envoy.config.endpoint.v3 import endpoint_pb2

from control_plane.resources.resource import CLUSTER_LOAD_ASSIGNMENT, Resource, pack
from control_plane.xds.limits import Limits
from control_plane.xds.stream import ROOTS, Stream
from control_plane.xds.subscription import WILDCARD, Flight, Subscription
from control_plane.xds.table import BEGINNING, Moment, ResourceTable
from control_plane.xds.whole import WholeState, content_version
from control_plane.xds.wire import sotw_response

_SOMETHING = ""
"""No resource's version: stands for what a client holds and has not told the version of."""


@lru_cache(maxsize=1024)
def no_endpoints(name: str) -> Resource:
    """The load assignment of a name that we have none of."""
    return pack(name, endpoint_pb2.ClusterLoadAssignment(cluster_name=name))


class SotwStream(Stream):
    """The machine for DiscoveryRequests."""

    def __init__(
        self, table: ResourceTable, now: float, limits: Limits | None = None, only_type: str | None = None
    ) -> None:
        # "Resource updates": a nonce is stale once a newer one was sent, so the next response waits for the answer.
        one = replace(limits or Limits(), window=1, endpoint_window=1, warming_window=1)
        super().__init__(table, now, one, only_type)
        self._absent: dict[str, Resource] = {}

    # Requests

    def _new_names(self, type_url: str, request: Any) -> Sequence[str]:
        subscription = self._subscriptions.get(type_url)
        known = subscription.names if subscription is not None else frozenset()
        return tuple(name for name in request.resource_names if name not in known)

    def _take(self, type_url: str, request: Any, now: float) -> None:
        subscription = self._subscriptions.get(type_url)
        if subscription is None:
            # "Basic Protocol Overview": a nonce does not survive its stream, so one in here means nothing.
            self._first_request(type_url, request, now)
            return
        nonce = request.response_nonce
        if nonce:
            self._take_answer(subscription, request, now)
            if nonce != subscription.newest_nonce:
                # "Resource updates": no response for a request with a stale nonce.
                return
        # Without a nonce: "When to send an update", it supersedes what was asked before, answered or not.
        self._change_names(subscription, request.resource_names, now)

    def _first_request(self, type_url: str, request: Any, now: float) -> None:
        # A list that holds no more than an empty name is not empty, and asks for nothing.
        names = list(request.resource_names)
        removable = whole = type_url in ROOTS
        subscription = self._begin(type_url, removable=removable)
        subscription.explicit = bool(names)
        subscription.names.update(name for name in names if name not in ("", WILDCARD))
        subscription.wildcard = WILDCARD in names or (not names and whole)
        wanted = dict.fromkeys(subscription.names)
        if subscription.wildcard:
            wanted |= dict.fromkeys(self._table.entries(type_url))
        if whole:
            subscription.whole = WholeState()
            if self._has_everything(subscription, request.version_info):
                return
            subscription.answer_owed = subscription.wildcard
            if request.version_info:
                subscription.holds_unknown(BEGINNING)
        held = _SOMETHING if request.version_info else None
        for name in wanted:
            self._introduce(subscription, name, held, now, forced=False)

    def _has_everything(self, subscription: Subscription, version: str) -> bool:
        """ "ACK/NACK and resource type instance version": nothing need be sent to a client that reconnects with what we
        would send, where it can't have asked for something new. That is sure of the wildcard alone: a name may have
        been dropped and asked for again since, and of other types the version tells of the last response only."""
        if not (version and subscription.wildcard) or subscription.names:
            return False
        entries = self._table.entries(subscription.type_url)
        if version != content_version(entry.resource for entry in entries.values()):
            return False
        assert subscription.whole is not None
        subscription.whole.claimed(entry.resource for entry in entries.values())
        for name, entry in entries.items():
            self._introduce(subscription, name, entry.resource.version, 0.0, forced=False)
        return True

    def _change_names(self, subscription: Subscription, names: Sequence[str], now: float) -> None:
        """ "Unsubscribing From Resources": each request lists all that the client wants."""
        wanted = set(names)
        # "How the client specifies what resources to return": no names mean all, until there have been names.
        all_of_them = WILDCARD in wanted or (subscription.wildcard and not (wanted or subscription.explicit))
        wanted -= {"", WILDCARD}
        if subscription.wildcard and not all_of_them:
            self._unsubscribe_wildcard(subscription, wanted)
        elif all_of_them and not subscription.wildcard:
            self._subscribe_wildcard(subscription, now)
            subscription.answer_owed = True
        subscription.explicit |= bool(names)
        for name in subscription.names - wanted:
            subscription.names.remove(name)
            if not subscription.wildcard:
                self._forget(subscription, name)
        if subscription.wildcard:
            # What the wildcard covers the client has asked for already, and holds.
            subscription.names.update(wanted)
            return
        # "How the client specifies what resources to return": newly requested ones are sent, whatever was sent before.
        added = wanted - subscription.names
        self._subscribe(subscription, [name for name in dict.fromkeys(names) if name in added], now)

    def _unsubscribe_wildcard(self, subscription: Subscription, still_wanted: set[str]) -> None:
        subscription.wildcard = False
        subscription.answer_owed = False
        sent = subscription.whole.sent if subscription.whole is not None else ()
        for name in {*subscription.items, *self._order.names(subscription.type_url), *sent} - subscription.names:
            self._forget(subscription, name)

    def _forget(self, subscription: Subscription, name: str) -> None:
        super()._forget(subscription, name)
        if subscription.type_url == CLUSTER_LOAD_ASSIGNMENT:
            self._absent.pop(name, None)

    # Answers

    def _take_answer(self, subscription: Subscription, request: Any, now: float) -> None:
        flight = subscription.flights.get(request.response_nonce)
        if flight is None:
            self._answered(subscription.type_url, request, now)
            return
        self._catch_up(subscription, flight, request)
        newer = next((each for each in subscription.flights.values() if each.sequence > flight.sequence), None)
        refused = request.HasField("error_detail") and flight.nonce in subscription.flights
        if subscription.whole is None or newer is None or not refused:
            subscription.doubted = False
            self._answered(subscription.type_url, request, now)
            return
        # The newer one holds all of it again, so its answer decides.
        names = dict(flight.names)
        subscription.merge(flight, newer)
        subscription.doubted = True
        subscription.counters.nacked += 1
        subscription.counters.last_error = request.error_detail.message
        self._report(subscription.type_url, names, request.error_detail, searching=True, proven=False)

    def _catch_up(self, subscription: Subscription, newest: Flight, request: Any) -> None:
        """A client answers in order, and may answer several at once (Envoy, where requests of the type were paused):
        what it says of one response it says of those before, or one of those is to blame."""
        upto = [flight for flight in subscription.flights.values() if flight.sequence <= newest.sequence]
        refused = request.HasField("error_detail")
        applied = newest.sequence
        if refused:
            # "ACK and NACK semantics summary": a NACK has the version that the client is using. That can be the newest
            # one's even, if the error is about one before (Envoy 1.40 keeps it until it is told). Of a type whose
            # responses hold a part only, an equal version can be that of an earlier response.
            used = [each for each in upto if subscription.whole and each.version == request.version_info]
            applied = max((each.sequence for each in used), default=0)
        for flight in upto:
            if flight is newest and not (refused and flight.sequence == applied):
                # Its own answer is yet to be taken.
                continue
            if flight.sequence <= applied:
                del subscription.flights[flight.nonce]
                self._acked(subscription, flight)
            else:
                subscription.merge(flight, newest)

    # What is due

    def _look(self, type_url: str, name: str) -> Resource | None:
        resource = super()._look(type_url, name)
        return self._absent.get(name) if resource is None and type_url == CLUSTER_LOAD_ASSIGNMENT else resource

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
        if subscription.type_url == CLUSTER_LOAD_ASSIGNMENT:
            if self._table.get(CLUSTER_LOAD_ASSIGNMENT, name) is not None:
                self._absent.pop(name, None)
            elif forced or held == _SOMETHING or self._awaited(subscription, name):
                # "Knowing When a Requested Resource Does Not Exist" has no way but the client's timeout, and a cluster
                # warms until then ("Resource warming"), with Envoy's CDS answers withheld. No endpoints is the truth.
                self._absent[name] = no_endpoints(name)
        super()._mark(subscription, name, held, since, now, forced=forced)

    def _awaited(self, subscription: Subscription, name: str) -> bool:
        """Whether the client still waits for a first answer, or for one since its cluster changed."""
        item = subscription.items.get(name)
        return name in self._order.warming or (item is not None and item.forced)

    # Responses

    def _frame(
        self, subscription: Subscription, flight: Flight, puts: Sequence[Resource], removals: Iterable[str]
    ) -> bytes:
        whole = subscription.whole
        if whole is None:
            flight.version = content_version(puts)
            return sotw_response(subscription.type_url, flight.nonce, flight.version, puts)
        for resource in puts:
            whole.put(resource.name, resource, flight.sequence)
        for name in removals:
            whole.put(name, None, flight.sequence)
        flight.version = whole.version
        return sotw_response(subscription.type_url, flight.nonce, flight.version, whole.sent.values())
