"""Make before break on one stream: what has to wait for what, and since when.

The protocol's "Eventual consistency considerations" ask for CDS, then EDS, then what names the clusters (listeners,
routes, router policy), and the reverse for removals. What Envoy adds to that (measured with 1.40): it withholds every
CDS ACK while any cluster warms, so a CDS ACK is never waited for; its EDS ACK coincides with the cluster being active.

Invariant: nothing here waits without a deadline, and a resource that waits is not replaced by a newer one, so a
stream of updates can't starve it: the newer one follows when it has gone out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from control_plane.resources.resource import CLUSTER, Resource
from control_plane.xds.subscription import Subscription
from control_plane.xds.table import Moment

MAX_HELD = 5
Key = tuple[str, str]


@dataclass(slots=True)
class Waiting:
    """A resource that waits until EDS of some clusters is ACKed: cluster -> the first response whose ACK counts.

    `newer`: since when the table has a newer version than this one.
    """

    resource: Resource
    deadline: float
    clusters: dict[str, int]
    newer: Moment | None = None


@dataclass(slots=True)
class Order:
    """`warming`: clusters that are to be sent, or were sent in that response, and whose EDS was not ACKed since.

    `waiting`: what waits for clusters. `held`: what the client may hold of the types that can require clusters:
    (response, resource), the last ACKed one first; None for a version that we don't know.
    """

    warming: dict[str, int | None] = field(default_factory=dict)
    waiting: dict[Key, Waiting] = field(default_factory=dict)
    held: dict[Key, list[tuple[int, Resource | None]]] = field(default_factory=dict)
    settled: bool = False
    """The client has said what it holds of every type that we have."""
    leaving: dict[str, int] = field(default_factory=dict)
    """Clusters that were warming when the table lost them, and of which the removal has not gone out: until then they
    warm on at the client, and that matters again if they come back."""
    removed: set[str] = field(default_factory=set)
    """Clusters that the table has lost since `waiting` was looked through last."""
    released: bool = True
    """Something happened that may let removals go that had to wait when they were looked at last."""

    def cluster_due(self, name: str) -> None:
        """A cluster is to be sent: not usable until its EDS is ACKed after that."""
        self._back(name)
        self.warming.setdefault(name, None)

    def cluster_not_due(self, name: str) -> None:
        """The client has the cluster after all, or is about to: the change was taken back before it was sent."""
        self._back(name)
        if self.warming.get(name, 0) is None:
            self.cluster_gone(name)

    def _back(self, name: str) -> None:
        sent = self.leaving.pop(name, None)
        if sent is not None:
            self.warming[name] = sent

    def cluster_sent(self, name: str, sequence: int, *, has_endpoints: bool) -> None:
        """A cluster went out; one without an EDS resource is usable from there on, since a stream is in order."""
        if has_endpoints:
            self.warming[name] = sequence
        else:
            self.cluster_gone(name)

    def cluster_gone(self, name: str) -> None:
        """Nothing waits for this cluster any longer: its removal went out, or it was given up."""
        self.leaving.pop(name, None)
        self.warming.pop(name, None)
        for waiting in self.waiting.values():
            waiting.clusters.pop(name, None)

    def cluster_removed(self, name: str) -> None:
        """The table no longer has this cluster."""
        sent = self.warming.get(name) or self.leaving.get(name)
        self.cluster_gone(name)
        if sent is not None:
            self.leaving[name] = sent
        self.removed.add(name)
        self.released = True

    def outdated(self) -> list[Key]:
        """What waits and requires a cluster that has been removed meanwhile: it must not go out, something newer will.

        Forgets which clusters those were.
        """
        removed, self.removed = self.removed, set()
        if not removed:
            return []
        return [key for key, waiting in self.waiting.items() if not removed.isdisjoint(waiting.resource.requires)]

    def endpoints_acked(self, names: Iterable[str], sequence: int) -> None:
        """EDS of these clusters, sent in that response, was ACKed: usable, if no CDS of them went out after it."""
        for name in names:
            if self.leaving.get(name, sequence) < sequence:
                del self.leaving[name]
            sent = self.warming.get(name, 0)
            if sent is not None and sent < sequence:
                self.warming.pop(name, None)
                for waiting in self.waiting.values():
                    if waiting.clusters.get(name, sequence + 1) <= sequence:
                        del waiting.clusters[name]

    def endpoints_forgotten(self, name: str) -> None:
        """The client has dropped this EDS subscription: no ACK of it will come, unless its cluster is on its way."""
        if name not in self.warming and name not in self.leaving:
            self.cluster_gone(name)

    def names(self, type_url: str) -> Iterator[str]:
        """The names of this type that something is remembered of here."""
        if type_url == CLUSTER:
            yield from self.warming
        for kind, name in (*self.held, *self.waiting):
            if kind == type_url:
                yield name

    def wait(
        self, resource: Resource, deadline: float, endpoints: Subscription | None, sequence: int, *, everything: bool
    ) -> None:
        """Let `resource` wait for what is on its way of the clusters that it requires, or of all for `everything`.

        Costs what is on its way (`sequence`: the last response sent), never the number of clusters.
        """
        unsettled = dict.fromkeys(self.warming, sequence + 1)
        items = endpoints.items if endpoints is not None else {}
        removals = endpoints.removals if endpoints is not None else {}
        for name, item in items.items():
            sent = self.warming.get(name, 0)
            if item.due is None and item.flying and sent is not None and item.last_sent > sent:
                unsettled[name] = item.last_sent
            elif item.on_its_way and name not in removals:
                # (Those go after their cluster, and that after what names it, perhaps this very resource.)
                unsettled[name] = sequence + 1
        if not everything:
            unsettled = {name: unsettled[name] for name in unsettled.keys() & resource.requires}
        self.waiting[resource.type_url, resource.name] = Waiting(resource, deadline, unsettled)

    def claimed(self, key: Key, resource: Resource | None) -> None:
        """A client that reconnects holds this version, or one that we don't know."""
        self.held[key] = [(0, resource)]

    def recognised(self, key: Key, resource: Resource) -> None:
        """What a client claimed and we did not know is the table's version again, and this is it."""
        if self.held.get(key) == [(0, None)]:
            self.claimed(key, resource)
            self.released = True

    def sent(self, key: Key, sequence: int, resource: Resource) -> None:
        """The client is about to hold this version, and until it ACKs, perhaps one of those before."""
        held = self.held.setdefault(key, [])
        held.append((sequence, resource))
        if len(held) > MAX_HELD:
            # Of a client that refuses one version after the other, the last ACKed and the newest matter.
            del held[1]

    def acked(self, key: Key, sequence: int) -> None:
        """The client holds what that response said, or something newer."""
        held = self.held.get(key)
        if held is not None:
            held[:] = [entry for entry in held if entry[0] >= sequence]
            if not held:
                del self.held[key]
            self.released = True

    def forget(self, key: Key) -> None:
        """The client no longer wants this name, or it is gone from the table before it was sent."""
        self.held.pop(key, None)
        self.waiting.pop(key, None)
        self.released = True

    def free(self, cluster: str) -> bool:
        """Whether nothing that the client may hold, or is about to be sent, names this cluster. No as long as we don't
        know what it holds."""
        return (
            self.settled
            and not any(
                resource is None or cluster in resource.requires
                for entries in self.held.values()
                for _, resource in entries
            )
            and not any(cluster in waiting.resource.requires for waiting in self.waiting.values())
        )

    def ready(self, type_url: str, now: float) -> Iterator[Waiting]:
        """What of this type has nothing left to wait for, or has waited for too long."""
        for (kind, _), waiting in self.waiting.items():
            if kind == type_url and (not waiting.clusters or waiting.deadline <= now):
                yield waiting
