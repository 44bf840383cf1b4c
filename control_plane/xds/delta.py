"""The incremental variant of the protocol ("delta", DeltaDiscoveryRequest and DeltaDiscoveryResponse).

Invariant: a response holds what changed and nothing else; what the client says that it has is never sent again, unless
the protocol asks for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from control_plane.resources.resource import CLUSTER, CLUSTER_LOAD_ASSIGNMENT, Resource
from control_plane.xds.gates import PAIR
from control_plane.xds.stream import ROOTS, Stream
from control_plane.xds.subscription import WILDCARD, Flight, Subscription
from control_plane.xds.wire import delta_response


class DeltaStream(Stream):
    """The machine for DeltaDiscoveryRequests."""

    def _new_names(self, type_url: str, request: Any) -> Sequence[str]:
        return tuple(request.resource_names_subscribe)

    def _take(self, type_url: str, request: Any, now: float) -> None:
        if request.response_nonce:
            self._answered(type_url, request, now)
        # "Incremental xDS": a stale nonce must not keep the server from honouring changes of the subscription.
        subscription = self._subscriptions.get(type_url)
        if subscription is None:
            self._first_request(self._begin(type_url), request, now)
        else:
            self._subscribe(subscription, request.resource_names_subscribe, now)
            self._unsubscribe(subscription, request.resource_names_unsubscribe, now)

    def _first_request(self, subscription: Subscription, request: Any, now: float) -> None:
        names = list(request.resource_names_subscribe)
        claimed = dict(request.initial_resource_versions)
        subscription.explicit = bool(names)
        subscription.names.update(name for name in names if name != WILDCARD)
        # "How the client specifies what resources to return": never having named any is the old way to say "*"; only
        # listeners and clusters have it.
        subscription.wildcard = WILDCARD in names or (not names and subscription.type_url in ROOTS)
        endpoints = subscription.type_url == CLUSTER_LOAD_ASSIGNMENT
        if endpoints and claimed and self._only_type is None and CLUSTER not in self._subscriptions:
            self._gates.expect_clusters(now)
        wanted = dict.fromkeys(subscription.names)
        if subscription.wildcard:
            wanted |= dict.fromkeys(self._table.entries(subscription.type_url))
            # "Incremental xDS", reconnecting: what a wildcard client still holds and we no longer have.
            wanted |= dict.fromkeys(claimed)
        entries = self._table.entries(subscription.type_url)
        for name in wanted:
            # A cluster that this stream has sent already needs its endpoints after that, whatever the client holds.
            again = endpoints and name in self._order.warming
            entry = entries.get(name)
            if entry is not None and subscription.type_url in PAIR and not again and entry.is_good(claimed.get(name)):
                # Nothing to learn and nothing to send: what nearly every name of an Envoy that reconnects is.
                continue
            self._introduce(subscription, name, claimed.get(name), now, forced=again)
        # A wildcard client that has nothing must learn that there is nothing, or it waits for its fetch timeout.
        subscription.answer_owed = subscription.wildcard and not claimed

    def _unsubscribe(self, subscription: Subscription, names: Any, now: float) -> None:
        for name in names:
            if name == WILDCARD:
                subscription.wildcard = False
                remembered = {*subscription.items, *self._order.names(subscription.type_url)}
                for other in remembered - subscription.names:
                    self._forget(subscription, other)
            elif name in subscription.names:
                subscription.names.remove(name)
                if not subscription.wildcard:
                    self._forget(subscription, name)
                    continue
                # "Unsubscribing from Resources": the client can't know whether the wildcard still covers the name.
                entry = self._table.entries(subscription.type_url).get(name)
                held = None if entry is None else entry.resource.version
                self._mark(subscription, name, held, self._table.moment, now, forced=True)
            # Superfluous names are ignored: "the server must cleanly process such a request".

    def _frame(
        self, subscription: Subscription, flight: Flight, puts: Sequence[Resource], removals: Iterable[str]
    ) -> bytes:
        return delta_response(subscription.type_url, flight.nonce, puts, removals, str(self._table.revision))
