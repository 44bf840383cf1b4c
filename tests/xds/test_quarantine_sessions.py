"""Random sessions of several clients, some of which refuse things, against one table with its quarantine.

Whatever the order of updates, answers, refusals and reconnects: what is offered in place of a refused version is one
that was acknowledged, or nothing; every client ends with exactly what is offered, and neighbours always do.
"""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from envoy.service.discovery.v3 import discovery_pb2
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from control_plane.resources.resource import Resource
from control_plane.xds.delta import DeltaStream
from control_plane.xds.sotw import SotwStream
from control_plane.xds.stream import Stream
from control_plane.xds.table import ResourceTable, TableChange
from control_plane.xds.warden import judge
from tests.xds.client import CDS, ECDS, EDS, LDS, cluster, endpoints, listener, request, router
from tests.xds.session_settings import sessions

MODELS = ("a", "b", "c")
BAD, ODD = 3, 4
"""The kind of cluster and endpoints that everybody refuses, and the one that only the odd client does."""
ODD_ONE = 0
TYPES = (CDS, EDS, LDS, ECDS)
EXPLICIT = {EDS: list(MODELS), ECDS: ["router"]}
FULL = {CDS, LDS}


def kinds(kind: int) -> list[Resource]:
    made = [each for name in MODELS for each in (cluster(name, kind), endpoints(name, kind))]
    return [*made, listener(version=kind), router(version=kind)]


REFUSED = {number: frozenset(resource.version for resource in kinds(number)) for number in (BAD, ODD)}


class Client:
    """One client of either variant, which asks for everything of every type, and answers when it is told to."""

    def __init__(self, table: ResourceTable, *, whole: bool, odd: bool) -> None:
        self.table, self.whole = table, whole
        self.bad = REFUSED[BAD] | REFUSED[ODD] if odd else REFUSED[BAD]
        self.held: dict[str, dict[str, str]] = {kind: {} for kind in TYPES}
        self.versions: dict[str, str] = {}
        self.connect(0.0)

    def connect(self, now: float) -> None:
        self.stream: Stream = (SotwStream if self.whole else DeltaStream)(self.table, now)
        self.inbox: list[Any] = []
        for kind in TYPES:
            names = EXPLICIT.get(kind, [])
            if self.whole:
                self._say(kind, names, version_info=self.versions.get(kind, ""))
            else:
                self.stream.receive(request(kind, names, claimed=self.held[kind]), now)

    def _say(self, kind: str, names: list[str], **fields: Any) -> None:
        message = discovery_pb2.DiscoveryRequest(type_url=kind, resource_names=names, **fields)
        self.stream.receive(message, 0.0)

    def read(self, now: float) -> None:
        parse = discovery_pb2.DiscoveryResponse if self.whole else discovery_pb2.DeltaDiscoveryResponse
        self.inbox += [parse.FromString(raw) for raw in self.stream.outgoing(now)]

    def answer(self, says: str, *, partly: bool) -> None:
        """Answer the oldest response. A refusal says nothing of use, or names one, or all that are to blame; it may be
        of a response whose good clusters are applied all the same."""
        response = self.inbox.pop(0)
        kind = response.type_url
        got = self._contents(response)
        wrong = [name for name, version in got.items() if version in self.bad]
        if not wrong or (partly and kind == CDS):
            self._apply(kind, {name: got[name] for name in got if name not in wrong}, response)
        error = {"none": "no good", "one": wrong[0] if wrong else "", "all": ", ".join(wrong)}[says] if wrong else None
        if not self.whole:
            self.stream.receive(request(kind, nonce=response.nonce, error=error), 0.0)
            return
        if error is None:
            self.versions[kind] = response.version_info
        fields: dict[str, Any] = {} if error is None else {"error_detail": {"code": 13, "message": error}}
        fields["version_info"] = self.versions.get(kind, "")
        self._say(kind, EXPLICIT.get(kind, []), response_nonce=response.nonce, **fields)

    def _contents(self, response: Any) -> dict[str, str]:
        if not self.whole:
            return {resource.name: resource.version for resource in response.resources}
        bodies = {resource.SerializeToString(deterministic=True) for resource in response.resources}
        return {each.name: each.version for each in KNOWN if each.type_url == response.type_url and each.body in bodies}

    def _apply(self, kind: str, got: dict[str, str], response: Any) -> None:
        if self.whole and kind in FULL:
            kept = {name: version for name, version in self.held[kind].items() if name in self._contents(response)}
            self.held[kind] = kept | got
            return
        self.held[kind] |= got
        for name in getattr(response, "removed_resources", ()):
            self.held[kind].pop(name, None)


KNOWN = [each for kind in (1, 2, BAD, ODD) for each in kinds(kind)]


class Refusals(RuleBasedStateMachine):
    """Two delta clients, the first of them odd, and one of the other variant."""

    @initialize()
    def start(self) -> None:
        self.now = 0.0
        self.offered: dict[tuple[str, str], Resource] = {}
        self.proven: set[tuple[str, str, str]] = set()
        self.table = ResourceTable()
        self._update([listener(), router()], [])
        self.table.mark_ready()
        self.clients = [Client(self.table, whole=number == 2, odd=number == ODD_ONE) for number in range(3)]

    def _update(self, puts: list[Resource], removes: list[tuple[str, str]]) -> None:
        for key in removes:
            self.offered.pop(key, None)
        self.offered |= {(each.type_url, each.name): each for each in puts}
        self._publish(self.table.update(puts, removes, self.table.revision + 1))

    def _publish(self, change: TableChange) -> None:
        for client in getattr(self, "clients", ()):
            client.stream.notice(change, self.now)

    @rule(name=st.sampled_from(MODELS), kind=st.integers(1, 4), port=st.integers(1, 4))
    def put_model(self, name: str, kind: int, port: int) -> None:
        self._update([cluster(name, kind), endpoints(name, port)], [])

    @rule(kind=st.integers(1, 4), what=st.sampled_from([listener, router]))
    def put_for_all(self, kind: int, what: Any) -> None:
        self._update([what(version=kind)], [])

    @rule(name=st.sampled_from(MODELS))
    def remove_model(self, name: str) -> None:
        self._update([], [(CDS, name), (EDS, name)])

    @rule()
    def retry(self) -> None:
        self._publish(self.table.retry_withheld())

    @rule(number=st.integers(0, 2))
    def reconnect(self, number: int) -> None:
        self.clients[number].connect(self.now)
        self._judge(self.clients[number])

    @rule(number=st.integers(0, 2))
    def write(self, number: int) -> None:
        self.clients[number].read(self.now)

    @precondition(lambda self: any(client.inbox for client in self.clients))
    @rule(data=st.data(), says=st.sampled_from(["none", "one", "all"]), partly=st.booleans())
    def answer(self, data: Any, says: str, partly: bool) -> None:
        client = data.draw(st.sampled_from([client for client in self.clients if client.inbox]))
        client.answer(says, partly=partly)
        self._judge(client)

    def _judge(self, client: Client) -> None:
        for kind, held in client.held.items():
            self.proven |= {(kind, name, version) for name, version in held.items()}
        for event in client.stream.events():
            change = judge(self.table, event, "peer", 0.0)
            if change is not None:
                self._publish(change)

    @invariant()
    def what_is_to_be_sent_is_what_is_offered_or_was_good(self) -> None:
        for key, resource in getattr(self, "offered", {}).items():
            record, current = self.table.quarantined.get(key), self.table.get(*key)
            assert self.table.offered(*key) == resource
            if record is None:
                assert current == resource
            elif record.last_good_version is not None:
                assert current is not None
                assert current.version == record.last_good_version
                assert (*key, current.version) in self.proven
            else:
                assert current in (None, resource)
        if hasattr(self, "table"):
            assert self.table.quarantined.keys() <= self.offered.keys()
            assert {(kind, name) for kind in self.table.types() for name in self.table.entries(kind)} <= {*self.offered}

    def teardown(self) -> None:
        if not hasattr(self, "clients"):
            return
        for _ in range(300):
            self.now += 0.02
            for client in self.clients:
                client.read(self.now)
            if not any(client.inbox for client in self.clients):
                if self.now > 40:
                    break
                # Past every deadline: what waits for what is not what this is about.
                self.now += 11.0
            for client in self.clients:
                while client.inbox:
                    client.answer("one", partly=False)
                    self._judge(client)
        else:
            raise AssertionError("they never stop talking")
        for client in self.clients:
            self._check(client)

    def _check(self, client: Client) -> None:
        alone = False
        for (kind, name), resource in self.offered.items():
            current = self.table.get(kind, name)
            if current is None:
                assert self.table.withheld(kind, name), "a neighbour of what is withheld must be there"
            elif current.version in client.bad:
                record = self.table.quarantined.get((kind, name))
                alone |= record is None or record.last_good_version is not None
                assert current.version in REFUSED[ODD] or record is not None
            else:
                assert client.held[kind].get(name) == current.version, (kind, name, resource.version)
        for kind, held in client.held.items():
            if not client.whole or kind in FULL:
                assert {(kind, name) for name in held} <= self.offered.keys(), "what is gone is removed"
        if not alone:
            assert client.stream.converged_revision(self.now) == self.table.revision


TestRefusals = Refusals.TestCase
TestRefusals.settings = sessions(120)
