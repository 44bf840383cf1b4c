"""What random sessions have in common: a control plane whose models come, change and go, what was when, and what a
client may put in force at what time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from control_plane.resources.resource import Resource
from control_plane.xds.stream import Stream
from control_plane.xds.table import ResourceTable
from tests.xds.client import CDS, ECDS, EDS, LDS, cluster, endpoints, listener, router

MODELS = ("a", "b", "c", "d")
FIXED = {LDS: ["grpc"], ECDS: ["router"]}


class SessionModel(RuleBasedStateMachine):
    """`held` is what the client holds: type -> name -> version. `active` are the clusters that it can use, each with
    the version that it uses: a changed one is the old one until it is warm."""

    def __init__(self) -> None:
        super().__init__()
        self.table = ResourceTable()
        self.now = 0.0
        self.models: dict[str, tuple[int, int]] = {}
        self.pinned: frozenset[str] = frozenset()
        self.routers: list[Resource] = []
        self.revision = 1
        self.requirements: dict[str, frozenset[str]] = {}
        self.history: dict[tuple[str, str], list[tuple[int, str | None]]] = {}
        self.held: dict[str, dict[str, str]] = {CDS: {}, EDS: {}, LDS: {}, ECDS: {}}
        self.active: dict[str, str] = {}

    def streams(self) -> Iterable[Stream]:
        """The open ones."""
        return ()

    def connect(self) -> None:
        """Begin anew with what is held."""

    @initialize()
    def start(self) -> None:
        self._update([listener(), self._router()], [])
        self.table.mark_ready()
        self.connect()

    def _router(self) -> Resource:
        """A new version whenever it names other clusters, so that the version tells since when they are needed."""
        if not self.routers or self.routers[-1].requires != self.pinned:
            self.routers.append(router(*sorted(self.pinned), version=self.revision))
        resource = self.routers[-1]
        self.requirements[resource.version] = resource.requires
        return resource

    def _update(self, puts: Iterable[Resource], removes: Iterable[tuple[str, str]]) -> None:
        change = self.table.update(puts, removes, self.revision)
        for one in change.changes:
            version = one.new.version if one.new else None
            self.history.setdefault((one.type_url, one.name), []).append((self.revision, version))
        for stream in self.streams():
            stream.notice(change, self.now)
        self.revision += 1

    @rule(
        name=st.sampled_from(MODELS),
        kind=st.integers(1, 2),
        port=st.integers(1, 4),
        pin=st.sampled_from([True, True, False]),
        router_too=st.sampled_from([True, True, False]),
    )
    def put_model(self, name: str, kind: int, port: int, pin: bool, router_too: bool) -> None:
        """`router_too`: or it follows with a later change, as when it is built from more than one."""
        self.models[name] = (kind, port)
        self.pinned = self.pinned | {name} if pin else self.pinned - {name}
        self._update([cluster(name, kind), endpoints(name, port), *([self._router()] if router_too else [])], [])

    @precondition(lambda self: self.models)
    @rule(data=st.data(), port=st.integers(1, 4))
    def change_endpoints(self, data: Any, port: int) -> None:
        """And make a new router of the same clusters."""
        name = data.draw(st.sampled_from(sorted(self.models)))
        self.models[name] = (self.models[name][0], port)
        self.routers.append(router(*sorted(self.pinned), version=self.revision))
        self._update([endpoints(name, port), self._router()], [])

    @rule()
    def take_back_the_router(self) -> None:
        if len(self.routers) > 1 and self.routers[-2].requires <= self.models.keys():
            self.routers.append(self.routers[-2])
            self.pinned = self.routers[-1].requires
            self._update([self._router()], [])

    @rule(version=st.integers(1, 3))
    def change_listener(self, version: int) -> None:
        self._update([listener(version=version)], [])

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def remove_model(self, data: Any) -> None:
        name = data.draw(st.sampled_from(sorted(self.pinned or self.models)))
        self.models.pop(name)
        self.pinned -= {name}
        self._update([self._router()], [(CDS, name), (EDS, name)])

    def since(self, kind: str, name: str, version: str) -> int:
        """When the table had this version first."""
        return next(revision for revision, each in self.history[kind, name] if each == version)

    def assert_ready_for(self, version: str, refused: Iterable[tuple[str, str]] = ()) -> None:
        """The router may be put in force now: of each cluster that it names, the client uses one, with its endpoints,
        that is no older than the router is. (The server may send one that the table has replaced meanwhile, and does.)
        `refused`: of what the client would not have, nobody waits for endpoints.
        """
        since = self.since(ECDS, "router", version)
        for name in self.requirements[version]:
            assert name in self.active, f"the router came before {name} was warm"
            assert self.active[name] in self.allowed(CDS, name, since), f"the router came before the change of {name}"
            endpoints_since = self.allowed(EDS, name, since)
            if (EDS, name) not in refused and None not in endpoints_since:
                assert self.held[EDS].get(name) in endpoints_since, f"the router came before the endpoints of {name}"

    def allowed(self, kind: str, name: str, converged: int) -> set[str | None]:
        """The versions of which a client that is converged to that revision holds one: the one of then or a later."""
        versions = self.history.get((kind, name), [])
        then = [index for index, (revision, _) in enumerate(versions) if revision <= converged]
        return {version for _, version in versions[then[-1] :]} if then else set()

    def assert_all_held(self) -> None:
        for kind in (CDS, EDS, LDS, ECDS):
            wanted = {name: entry.resource.version for name, entry in self.table.entries(kind).items()}
            assert self.held[kind] == wanted, kind
