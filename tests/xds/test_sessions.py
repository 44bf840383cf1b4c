"""Random sessions against a model of a client: whatever the order of changes, answers, refusals and reconnects."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis.stateful import invariant, precondition, rule

from control_plane.xds.delta import DeltaStream
from tests.xds.client import CDS, ECDS, EDS, LDS, Response, request
from tests.xds.session_model import FIXED, SessionModel
from tests.xds.session_settings import sessions


class Session(SessionModel):
    """One client that behaves as Envoy does: it applies responses in order, asks for the EDS of clusters that it has,
    answers late, and withholds CDS answers while a cluster warms. The clock stands: nothing is to wait for a deadline,
    but for the one that a changed cluster needs which warms while the client reconnects."""

    def __init__(self) -> None:
        super().__init__()
        self.warm: set[str] = set()
        self.refused: set[tuple[str, str]] = set()

    def streams(self):
        return [self.stream] if hasattr(self, "stream") else []

    # The client

    def connect(self) -> None:
        self.stream = DeltaStream(self.table, 0.0)
        self.in_flight: list[Response] = []
        self.unanswered: list[Response] = []
        self.waited = False
        self.asked: set[str] = set()
        self.refused.clear()
        self.cds_paused_since_start = bool(self.held[CDS].keys() - self.warm)
        self.to_ask = [CDS, EDS, LDS, ECDS]
        if self.cds_paused_since_start:
            self.to_ask = [EDS, LDS, ECDS]
        self.claims = {kind: dict(held) for kind, held in self.held.items()}
        self.claimed_and_known: dict[tuple[str, str], str] = {
            (kind, name): version for kind, held in self.claims.items() for name, version in held.items()
        }

    @rule(now=st.integers(0, 3))
    def reconnect(self, now: int) -> None:
        """Not too often, or no session gets far."""
        if now == 3:
            self.connect()

    @precondition(lambda self: self.to_ask)
    @rule(how_many=st.integers(1, 4))
    def ask(self, how_many: int) -> None:
        for _ in range(min(how_many, len(self.to_ask))):
            self._ask(self.to_ask.pop(0))

    def _ask(self, kind: str) -> None:
        names = [] if kind == CDS else FIXED.get(kind) or sorted(self.held[CDS])
        self.asked.add(kind)
        if kind == EDS:
            self.eds = set(names)
            if not names:
                self.asked.discard(EDS)
                return
        claimed = {name: version for name, version in self.held[kind].items() if kind == CDS or name in names}
        self.stream.receive(request(kind, names if kind != LDS else [], claimed=claimed), 0.0)

    @rule(count=st.integers(1, 3))
    def write(self, count) -> None:
        for raw in self.stream.outgoing(self.now):
            self.in_flight.append(Response.FromString(raw))

    @precondition(lambda self: self.in_flight)
    @rule(refuse=st.sampled_from([False, False, False, True]))
    def apply(self, refuse) -> None:
        response = self.in_flight.pop(0)
        kind = response.type_url
        touched = [resource.name for resource in response.resources] + list(response.removed_resources)
        assert len(touched) == len(set(touched)), "a name twice in one response must be NACKed"
        if refuse and kind in (CDS, EDS) and response.resources:
            # The whole response; what Envoy applies of a refused one is not what this session is about.
            self.refused |= {(kind, name) for name in touched}
            if kind == EDS and len(touched) == 1:
                # A refusal ends the warming too.
                self._warmed(touched)
            self._answer(response, refuse=True)
            self._resume()
            return
        self.refused -= {(kind, name) for name in touched}
        for resource in response.resources:
            before = self.claimed_and_known.pop((kind, resource.name), None)
            if not (kind == EDS and resource.name not in self.warm) and not self.waited:
                assert before != resource.version, "sent again though it had it"
            self.held[kind][resource.name] = resource.version
        for name in response.removed_resources:
            self.claimed_and_known.pop((kind, name), None)
            self.held[kind].pop(name, None)
        if kind == CDS:
            self._clusters(response)
            self.unanswered.append(response)
        else:
            if kind == EDS:
                self._warmed(touched)
            elif kind == ECDS and response.resources:
                self.assert_ready_for(response.resources[0].version, self.refused)
            self._answer(response)
        self._resume()

    def _warmed(self, names: list[str]) -> None:
        for name in names:
            if name in self.held[CDS]:
                self.warm.add(name)
                self.active[name] = self.held[CDS][name]

    def _clusters(self, response) -> None:
        new = [resource.name for resource in response.resources]
        self.warm -= {*new, *response.removed_resources}
        for name in response.removed_resources:
            self.active.pop(name, None)
        if EDS not in self.asked:
            if EDS not in self.to_ask:
                self.to_ask.insert(0, EDS)
            return
        subscribe = [name for name in new if name not in self.eds]
        unsubscribe = [name for name in response.removed_resources if name in self.eds]
        self.eds = (self.eds | set(subscribe)) - set(unsubscribe)
        for name in unsubscribe:
            self.held[EDS].pop(name, None)
            self.refused.discard((EDS, name))
        if subscribe or unsubscribe:
            self.stream.receive(request(EDS, subscribe, unsubscribe), 0.0)

    def _resume(self) -> None:
        if self.held[CDS].keys() - self.warm:
            return
        for response in self.unanswered:
            self._answer(response)
        self.unanswered.clear()
        if self.cds_paused_since_start:
            self.cds_paused_since_start = False
            self.to_ask.insert(0, CDS)

    def _answer(self, response, *, refuse: bool = False) -> None:
        error = "refused" if refuse else None
        self.stream.receive(request(response.type_url, nonce=response.nonce, error=error), 0.0)

    @rule(rounds=st.integers(1, 4))
    def go_on(self, rounds: int) -> None:
        """Nothing special for a while, so that sessions get far."""
        for _ in range(rounds):
            self.ask(len(self.to_ask))
            self.write(1)
            while self.in_flight:
                self.apply(refuse=False)
                self.never_a_router_without_its_clusters()

    # What must hold

    @invariant()
    def never_a_router_without_its_clusters(self) -> None:
        version = self.held[ECDS].get("router")
        assert version is None or self.requirements[version] <= self.active.keys()

    @invariant()
    def converged_is_never_more_than_was_acknowledged(self) -> None:
        if not hasattr(self, "stream"):
            return
        converged = self.stream.converged_revision(0.0)
        assert converged <= self.table.revision
        for (kind, name), versions in self.history.items():
            if kind == EDS and name not in getattr(self, "eds", ()):
                continue
            if (kind, name) in self.refused:
                continue
            # What the client holds must be the state at `converged` or a later one.
            then = [index for index, (revision, _) in enumerate(versions) if revision <= converged]
            if then:
                allowed = {version for _, version in versions[then[-1] :]}
                assert self.held[kind].get(name) in allowed, (kind, name, converged)

    def teardown(self) -> None:
        if not hasattr(self, "stream"):
            return
        for _ in range(200):
            # Enough for a window to open, too little for any deadline.
            self.now += 0.001
            if self.to_ask:
                self.ask(1)
            self.write(1)
            while self.in_flight:
                self.apply(refuse=False)
            self.write(1)
            if not self.to_ask and not self.in_flight:
                if not self.cds_paused_since_start or self.waited:
                    break
                # A changed cluster warms: only then is it sent EDS again that it has, and only after a while.
                self.now, self.waited = self.now + 1.0, True
        if self.refused:
            return
        assert {name: r.resource.version for name, r in self.table.entries(CDS).items()} == self.held[CDS]
        wanted = {name: r.resource.version for name, r in self.table.entries(EDS).items()}
        assert wanted == self.held[EDS]
        assert self.held[ECDS]["router"] == self.table.get(ECDS, "router").version
        assert self.held[LDS]["grpc"] == self.table.get(LDS, "grpc").version
        settled = self.stream.converged_revision(10.0)
        assert settled == self.table.revision
        assert self.stream.outgoing(10.0) == []


TestSession = Session.TestCase
TestSession.settings = sessions(150)
