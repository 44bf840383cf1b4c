"""Random state-of-the-world sessions against a model of an Envoy: whatever the order of changes, late answers, refusals
and reconnects, it ends with what the table has, and nothing is taken away that is only refused or held back."""

from __future__ import annotations

from collections.abc import Iterable

import hypothesis.strategies as st
from hypothesis.stateful import invariant, precondition, rule

from control_plane.xds.limits import Limits
from control_plane.xds.sotw import SotwStream, no_endpoints
from tests.xds.client import CDS, ECDS, EDS, LDS
from tests.xds.session_model import FIXED, SessionModel
from tests.xds.session_settings import sessions
from tests.xds.sotw_client import Response, held, request

TICK = 0.002
"""Seconds: enough for a window to open, too little for any other deadline in a session."""


class SotwSession(SessionModel):
    """An Envoy on one aggregated stream. It applies responses in order, asks for the EDS of the clusters that it has,
    and withholds its answers about CDS while a cluster warms: then one answer, to the newest, is for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.versions: dict[str, str] = {}
        self.warm: set[str] = set()

    def streams(self):
        return [self.stream] if hasattr(self, "stream") else []

    def connect(self) -> None:
        limits = Limits(patience_seconds=TICK, endpoint_patience_seconds=TICK)
        self.now = 0.0
        self.stream = SotwStream(self.table, 0.0, limits)
        self.connected_at = self.revision
        self.router_of_before = self.held[ECDS].get("router")
        self.in_flight: list[Response] = []
        self.nonces: dict[str, str] = {}
        self.asked: set[str] = set()
        self.withheld: tuple[str | None, bool] | None = None
        self.taken: set[str] = set()
        self.refused_once = False
        self.refused: set[tuple[str, str]] = set()
        self.lost: set[str] = set()
        self.to_ask = [CDS, EDS, LDS, ECDS]
        self.cds_paused = bool(self.held[CDS].keys() - self.warm)
        if self.cds_paused:
            self.to_ask.remove(CDS)

    @rule(now=st.integers(0, 3))
    def reconnect(self, now: int) -> None:
        """Not too often, or no session gets far."""
        if now == 3:
            self.connect()

    # Requests

    def _names(self, kind: str) -> list[str]:
        return sorted(self.held[CDS]) if kind == EDS else FIXED[kind] if kind == ECDS else []

    def _request(self, kind: str, error: str | None = None) -> None:
        version, nonce = self.versions.get(kind, ""), self.nonces.get(kind, "")
        self.stream.receive(request(kind, self._names(kind), version=version, nonce=nonce, error=error), self.now)

    @precondition(lambda self: self.to_ask)
    @rule(how_many=st.integers(1, 4))
    def ask(self, how_many: int) -> None:
        for _ in range(min(how_many, len(self.to_ask))):
            self._ask(self.to_ask.pop(0))

    def _ask(self, kind: str) -> None:
        if kind == EDS and not self.held[CDS]:
            return
        self.asked.add(kind)
        self._request(kind)

    @precondition(lambda self: self.asked)
    @rule(kind=st.sampled_from([CDS, EDS, LDS, ECDS]), nonce=st.sampled_from(["", "999"]))
    def say_something_stale(self, kind: str, nonce: str) -> None:
        """With no nonce, or one that was never sent: names that are not what the client wants only in the latter."""
        if kind not in self.asked or (nonce and kind not in self.nonces):
            return
        names = self._names(kind) if not nonce else ["stale"]
        self.stream.receive(request(kind, names, version=self.versions.get(kind, ""), nonce=nonce), self.now)

    # Responses

    @rule(tick=st.booleans())
    def write(self, tick: bool) -> None:
        self.now += TICK if tick else 0.0
        self.in_flight += [Response.FromString(raw) for raw in self.stream.outgoing(self.now)]

    @precondition(lambda self: self.in_flight)
    @rule(refuse=st.sampled_from([False, False, False, True]))
    def apply(self, refuse: bool) -> None:
        response = self.in_flight.pop(0)
        kind, new = response.type_url, held(response)
        self.nonces[kind] = response.nonce
        if refuse and kind in (CDS, EDS) and new != self.held[kind] and new:
            self.refused_once = True
            self.refused |= {(kind, name) for name in new}
            if kind == EDS and len(new) == 1:
                # A refusal ends the warming too.
                self._warmed(new)
            self._answer(kind, refuse=True)
            self._resume()
            return
        self.versions[kind] = response.version_info
        self.refused -= {(kind, name) for name in new}
        if kind in (CDS, LDS):
            self._nothing_taken_away(kind, new)
            before, self.held[kind] = self.held[kind], new
            if kind == CDS:
                self._clusters(before)
            self.taken.add(kind)
        else:
            self.held[kind] |= {name: version for name, version in new.items() if kind != EDS or name in self.held[CDS]}
            if kind == EDS:
                self._warmed(new)
            elif kind == ECDS:
                self.assert_ready_for(new["router"], self.refused)
        self._answer(kind)
        self._resume()

    def _warmed(self, names: Iterable[str]) -> None:
        for name in names:
            if name in self.held[CDS]:
                self.warm.add(name)
                self.active[name] = self.held[CDS][name]

    def _nothing_taken_away(self, kind: str, new: dict[str, str]) -> None:
        if kind not in self.taken and (self.refused_once or self.connected_at > 1):
            # What an Envoy holds from before a stream can't be told from what it should not hold.
            return
        for name in self.held[kind].keys() - new.keys():
            gone = [revision for revision, version in self.history[kind, name] if version is None]
            assert gone, f"{kind} {name} was taken away"

    def _clusters(self, before: dict[str, str]) -> None:
        now = self.held[CDS]
        self.warm -= {name for name in now if before.get(name) != now[name]}
        self.warm &= now.keys()
        self.active = {name: version for name, version in self.active.items() if name in now}
        if self.connected_at > 1 and (CDS not in self.taken or self.refused_once):
            # It can't say what it holds, so it is told what there is, before it has a router that is of today.
            self.lost |= before.keys() - now.keys()
        self.held[EDS] = {name: version for name, version in self.held[EDS].items() if name in now}
        if EDS in self.asked:
            if before.keys() != now.keys():
                self._request(EDS)
        elif EDS not in self.to_ask:
            self.to_ask.insert(0, EDS)

    def _answer(self, kind: str, *, refuse: bool = False) -> None:
        error = "refused" if refuse else None
        if kind == CDS and self.held[CDS].keys() - self.warm:
            earlier = self.withheld is not None and self.withheld[1]
            self.withheld = (error, refuse or earlier)
            return
        self._request(kind, error)

    def _resume(self) -> None:
        if self.held[CDS].keys() - self.warm:
            return
        if self.withheld is not None:
            # Envoy keeps the error of an earlier response until it is told.
            self._request(CDS, "refused" if self.withheld[1] else None)
            self.withheld = None
        if self.cds_paused:
            self.cds_paused = False
            self.to_ask.insert(0, CDS)

    @rule(rounds=st.integers(1, 4))
    def go_on(self, rounds: int) -> None:
        """Nothing special for a while, so that sessions get far."""
        for _ in range(rounds):
            self.ask(len(self.to_ask))
            self.write(tick=True)
            while self.in_flight:
                self.apply(refuse=False)
                self.never_a_router_without_its_clusters()

    # What must hold

    @invariant()
    def never_a_router_without_its_clusters(self) -> None:
        version = self.held[ECDS].get("router")
        if version is not None:
            lost = self.lost if version == self.router_of_before else set()
            assert self.requirements[version] - lost <= self.active.keys()

    @invariant()
    def converged_is_never_more_than_was_acknowledged(self) -> None:
        if not hasattr(self, "stream"):
            return
        converged = self.stream.converged_revision(self.now)
        assert converged <= self.table.revision
        for kind, name in self.history:
            if kind == EDS and name not in self.held[CDS]:
                continue
            allowed = self.allowed(kind, name, converged)
            version = self.held[kind].get(name)
            if kind == EDS and None in allowed:
                # The protocol has no way to say that it is gone.
                continue
            assert not allowed or version in allowed, (kind, name, converged)

    def teardown(self) -> None:
        if not hasattr(self, "stream"):
            return
        for _ in range(300):
            while self.to_ask:
                self.ask(1)
            self.write(tick=True)
            while self.in_flight:
                self.apply(refuse=False)
        if any(status.refused for status in self.stream.status().values()):
            return
        assert {no_endpoints(name).version for name in self.held[EDS]}.isdisjoint(self.held[EDS].values())
        self.assert_all_held()
        assert self.stream.converged_revision(10.0) == self.table.revision
        assert self.stream.unanswered == 0
        assert self.stream.outgoing(10.0) == []


TestSotwSession = SotwSession.TestCase
TestSotwSession.settings = sessions(100)
