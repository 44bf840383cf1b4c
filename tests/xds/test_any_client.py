"""Random sessions of a client that need not be an Envoy: it subscribes to and drops whatever it likes, in any order,
answers late, refuses what is bad, loses its stream and comes back. The oracle is the client's own book: it ends with
exactly the resources that it asks for, bad ones excepted, and is sent nothing that it has no need of."""

from __future__ import annotations

import hypothesis.strategies as st
from envoy.config.route.v3 import route_pb2
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from control_plane.resources.resource import ROUTE_CONFIGURATION, Resource, pack
from control_plane.xds.delta import DeltaStream
from control_plane.xds.table import ResourceTable
from tests.xds.client import CDS, ECDS, EDS, LDS, Response, cluster, endpoints, listener, request, router
from tests.xds.session_settings import sessions

RDS = ROUTE_CONFIGURATION
KINDS = (CDS, EDS, LDS, RDS, ECDS)
ROOTS = (CDS, LDS)
NAMES = ("a", "b", "c")
BAD = 9
"""A content that this client refuses, whatever its type."""

STEP = 0.25
"""Seconds."""


def resource(kind: str, name: str, content: int, requires: frozenset[str]) -> Resource:
    match kind:
        case _ if kind == CDS:
            return cluster(name, content)
        case _ if kind == EDS:
            return endpoints(name, content)
        case _ if kind == LDS:
            return listener(name, content)
        case _ if kind == RDS:
            message = route_pb2.RouteConfiguration(name=name)
            message.virtual_hosts.add(name=str(content), domains=["*"])
            return pack(name, message, requires=requires)
        case _:
            return router(*sorted(requires), name=name, version=content)


class AnyClient(RuleBasedStateMachine):
    """The incremental protocol on an aggregated stream."""

    def __init__(self) -> None:
        super().__init__()
        self.table = ResourceTable()
        self.now = 0.0
        self.bad: set[str] = set()
        self.held: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}
        self.names: dict[str, set[str]] = {kind: set() for kind in KINDS}
        self.all: set[str] = set()

    # The server's side

    @initialize(known=st.sets(st.tuples(st.sampled_from(KINDS), st.sampled_from(NAMES))))
    def start(self, known) -> None:
        puts = [self._made(kind, name, 1, frozenset()) for kind, name in sorted(known)]
        self.table.update(puts, [], 1)
        self.table.mark_ready()
        self._connect()

    def _made(self, kind, name, content, requires) -> Resource:
        made = resource(kind, name, content, requires)
        if content == BAD:
            self.bad.add(made.version)
        return made

    @rule(
        kinds=st.sets(st.sampled_from(KINDS), min_size=1),
        name=st.sampled_from(NAMES),
        content=st.sampled_from([1, 2, 3, BAD]),
        requires=st.frozensets(st.sampled_from(NAMES)),
    )
    def put(self, kinds, name, content, requires) -> None:
        self._update([self._made(kind, name, content, requires) for kind in sorted(kinds)], [])

    @rule(kinds=st.sets(st.sampled_from(KINDS), min_size=1), name=st.sampled_from(NAMES))
    def remove(self, kinds, name) -> None:
        self._update([], [(kind, name) for kind in sorted(kinds)])

    def _update(self, puts, removes) -> None:
        self.stream.notice(self.table.update(puts, removes, self.table.revision + 1), self.now)

    @rule(steps=st.integers(1, 60))
    def time_goes_by(self, steps) -> None:
        self.now += steps * STEP

    # The client's side

    def _connect(self) -> None:
        self.stream = DeltaStream(self.table, self.now)
        self.in_flight: list[Response] = []
        self.unanswered: list[tuple[Response, bool]] = []
        self.sent: dict[tuple[str, str], str | None] = {}
        self.owed: set[tuple[str, str]] = set()
        self.questions: set[tuple[str, str]] = set()
        self.asked: set[str] = set()

    def wants(self, kind: str, name: str) -> bool:
        return kind in self.asked and (name in self.names[kind] or kind in self.all)

    @precondition(lambda self: self.asked)
    @rule(remembers=st.booleans())
    def lose_the_stream(self, remembers) -> None:
        # To ask for no listener at all would be to ask for every one: nothing is asked then.
        before = sorted(kind for kind in self.asked if self.names[kind] or kind in self.all)
        self._connect()
        for kind in before:
            if not remembers:
                self.held[kind].clear()
            self._first_request(kind, sorted(self.names[kind]) + ["*"] * (kind in self.all))

    @rule(kind=st.sampled_from(KINDS), names=st.sets(st.sampled_from(NAMES)), everything=st.booleans())
    def subscribe(self, kind, names, everything) -> None:
        asked = sorted(names) + ["*"] * (everything and kind in ROOTS)
        if kind not in self.asked:
            self.names[kind] |= names
            if "*" in asked or (not names and kind in ROOTS):
                self.all.add(kind)
            self._first_request(kind, asked)
            return
        self.owed |= {(kind, name) for name in asked}
        self.questions |= {(kind, name) for name in names}
        if "*" in asked and kind not in self.all:
            self.all.add(kind)
            self.owed |= {(kind, name) for name in self.table.entries(kind).keys() - self.names[kind]}
        self.names[kind] |= names
        self._say(kind, asked)

    def _first_request(self, kind, asked) -> None:
        """Of what the client claims, only the difference is due; of all else, everything."""
        self.asked.add(kind)
        claimed = {name: version for name, version in self.held[kind].items() if self.wants(kind, name)}
        self.held[kind] = dict(claimed)
        if kind == EDS and claimed and CDS not in self.asked:
            # envoy#36951: one of its clusters may be warming, so after a while it may be sent all that it has.
            self.owed |= {(EDS, name) for name in NAMES}
        for name in {*self.table.entries(kind), *self.names[kind], *claimed}:
            if name in claimed:
                self.sent[kind, name] = claimed[name]
            else:
                self.owed.add((kind, name))
                if name in self.names[kind]:
                    self.questions.add((kind, name))
        self.stream.receive(request(kind, asked, claimed=claimed), self.now)

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), names=st.sets(st.sampled_from(NAMES)), everything=st.booleans())
    def drop(self, data, names, everything) -> None:
        kind = data.draw(st.sampled_from(sorted(self.asked)))
        dropped = sorted(names) + ["*"] * everything
        for name in names & self.names[kind]:
            # Is it still the wildcard's? The server has to say.
            self.owed.add((kind, name))
            self.questions.add((kind, name))
        self.names[kind] -= names
        if everything:
            self.all.discard(kind)
        self.questions = {(kind, name) for kind, name in self.questions if self.wants(kind, name)}
        for name in [name for name in self.held[kind] if not self.wants(kind, name)]:
            del self.held[kind][name]
        self._say(kind, [], dropped)

    def _say(self, kind, add=(), remove=(), **answer) -> None:
        self.stream.receive(request(kind, add, remove, **answer), self.now)

    @rule()
    def read(self) -> None:
        for raw in self.stream.outgoing(self.now):
            response = Response.FromString(raw)
            self._must_be_needed(response)
            self.in_flight.append(response)

    def _must_be_needed(self, response) -> None:
        kind = response.type_url
        told = {each.name: each.version for each in response.resources} | dict.fromkeys(response.removed_resources)
        assert len(told) == len(response.resources) + len(response.removed_resources), "a name twice in one response"
        for name, version in told.items():
            assert self.wants(kind, name), f"{name} was not asked for"
            known = self.sent.get((kind, name), "nothing")
            if (kind, name) not in self.owed:
                assert known != version, f"{kind} {name} was sent again"
                assert known != "nothing" or version is not None, f"{name} was removed and never sent"
            self.owed.discard((kind, name))
            self.questions.discard((kind, name))
            self.sent[kind, name] = version
            if kind == CDS and version is not None:
                # "Resource warming": a cluster that is sent needs its endpoints again.
                self.owed.add((EDS, name))

    def _must_be_answered(self) -> None:
        """Who asks for a name is told of it, whatever it was told before; and who drops one beside the wildcard."""
        assert not self.questions

    @precondition(lambda self: self.in_flight)
    @rule(later=st.booleans(), partly=st.booleans())
    def apply(self, later, partly) -> None:
        response = self.in_flight.pop(0)
        kind = response.type_url
        good = [each for each in response.resources if each.version not in self.bad]
        refused = len(good) < len(response.resources)
        for each in good if partly or not refused else ():
            if self.wants(kind, each.name):
                self.held[kind][each.name] = each.version
        if not refused or partly:
            for name in response.removed_resources:
                self.held[kind].pop(name, None)
        if refused:
            # Whether anything was applied is the client's secret, so anything may come again.
            self.owed |= {(kind, each.name) for each in response.resources}
            self.owed |= {(kind, name) for name in response.removed_resources}
        self.unanswered.append((response, refused))
        if not later:
            self.answer()

    @precondition(lambda self: self.unanswered)
    @rule()
    def answer(self) -> None:
        response, refused = self.unanswered.pop(0)
        self._say(response.type_url, nonce=response.nonce, error="bad" if refused else None)

    # What must be so in the end

    def expected(self, kind: str, wanted: dict[str, str]) -> dict[str, str]:
        """What it ends with, if it asks for this."""
        return wanted

    def teardown(self) -> None:
        if not hasattr(self, "stream"):
            return
        for _ in range(40):
            self.now += 2.0
            self.read()
            while self.in_flight:
                self.apply(later=True, partly=False)
            while self.unanswered:
                self.answer()
        for kind in KINDS:
            table = {name: entry.resource.version for name, entry in self.table.entries(kind).items()}
            wanted = self.expected(kind, {name: version for name, version in table.items() if self.wants(kind, name)})
            bad = {name for name, version in wanted.items() if version in self.bad}
            held = {name: version for name, version in self.held[kind].items() if name not in bad}
            assert held == {name: version for name, version in wanted.items() if name not in bad}, (kind, held, wanted)
            assert not self.bad & set(self.held[kind].values())
            if kind in self.asked:
                assert set(self.stream.status()[kind].refused) <= bad
        self._must_be_answered()
        assert self.stream.outgoing(self.now) == []
        assert self.stream.unanswered == 0
        if not any(each.refused for each in self.stream.status().values()):
            assert self.stream.converged_revision(self.now) == self.table.revision


TestAnyClient = AnyClient.TestCase
TestAnyClient.settings = sessions(40, steps=30)
