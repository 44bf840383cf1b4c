"""What random sessions have in common: a control plane whose models come, change and go, and what was when."""

from __future__ import annotations

from collections.abc import Iterable

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from control_plane.resources.resource import Resource
from control_plane.xds.stream import Stream
from control_plane.xds.table import ResourceTable
from tests.xds.client import CDS, ECDS, EDS, LDS, cluster, endpoints, listener, router

MODELS = ("a", "b", "c", "d")
FIXED = {LDS: ["grpc"], ECDS: ["router"]}


class SessionModel(RuleBasedStateMachine):
    """`held` is what the client holds: type -> name -> version."""

    def __init__(self) -> None:
        super().__init__()
        self.table = ResourceTable()
        self.now = 0.0
        self.models: dict[str, tuple[int, int]] = {}
        self.pinned: frozenset[str] = frozenset()
        self.revision = 1
        self.requirements: dict[str, frozenset[str]] = {}
        self.history: dict[tuple[str, str], list[tuple[int, str | None]]] = {}
        self.held: dict[str, dict[str, str]] = {CDS: {}, EDS: {}, LDS: {}, ECDS: {}}

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
        resource = router(*sorted(self.pinned))
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

    @rule(name=st.sampled_from(MODELS), kind=st.integers(1, 2), port=st.integers(1, 4), pin=st.booleans())
    def put_model(self, name: str, kind: int, port: int, pin: bool) -> None:
        self.models[name] = (kind, port)
        self.pinned = self.pinned | {name} if pin else self.pinned - {name}
        self._update([cluster(name, kind), endpoints(name, port), self._router()], [])

    @rule(name=st.sampled_from(MODELS))
    def remove_model(self, name: str) -> None:
        self.models.pop(name, None)
        self.pinned -= {name}
        self._update([self._router()], [(CDS, name), (EDS, name)])

    def allowed(self, kind: str, name: str, converged: int) -> set[str | None]:
        """The versions of which a client that is converged to that revision holds one: the one of then or a later."""
        versions = self.history.get((kind, name), [])
        then = [index for index, (revision, _) in enumerate(versions) if revision <= converged]
        return {version for _, version in versions[then[-1] :]} if then else set()

    def assert_all_held(self) -> None:
        for kind in (CDS, EDS, LDS, ECDS):
            wanted = {name: entry.resource.version for name, entry in self.table.entries(kind).items()}
            assert self.held[kind] == wanted, kind
