"""Random sessions of a client with a stream for each type, and one for the EDS of each cluster, in both variants."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
from hypothesis.stateful import invariant, precondition, rule

from control_plane.xds.delta import DeltaStream
from control_plane.xds.sotw import SotwStream
from control_plane.xds.stream import Stream
from tests.xds import client, sotw_client
from tests.xds.client import CDS, ECDS, EDS, LDS
from tests.xds.session_model import FIXED, SessionModel
from tests.xds.session_settings import sessions


@dataclass
class Line:
    """One stream of one type, as a client sees it."""

    stream: Stream
    kind: str
    names: list[str]
    nonce: str = ""
    in_flight: list[Any] = field(default_factory=list)


class SeparateSession(SessionModel):
    """What changes a cluster makes its EDS a new stream, as in Envoy. No order holds between streams."""

    delta = False

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[tuple[str, str], Line] = {}
        self.versions: dict[str, str] = {}

    def streams(self):
        return [line.stream for line in self.lines.values()]

    def connect(self) -> None:
        self.lines.clear()
        for kind in (CDS, LDS, ECDS):
            self._open(kind, "", FIXED.get(kind, []) if kind == ECDS else [])
        for name in self.held[CDS]:
            self._open(EDS, name, [name])

    @rule()
    def reconnect(self) -> None:
        self.connect()

    def _open(self, kind: str, key: str, names: list[str]) -> None:
        machine = DeltaStream if self.delta else SotwStream
        line = self.lines[kind, key] = Line(machine(self.table, 0.0, only_type=kind), kind, names)
        if not self.delta:
            self._say(line, version="" if kind == EDS else self.versions.get(kind, ""))
            return
        claimed = {} if kind == EDS else self.held[kind]
        line.stream.receive(client.request("", names, claimed=claimed), 0.0)

    def _say(self, line: Line, error: str | None = None, version: str = "") -> None:
        if self.delta:
            asked = client.request("", nonce=line.nonce, error=error)
        else:
            asked = sotw_client.request("", line.names, version=version, nonce=line.nonce, error=error)
        line.stream.receive(asked, 0.0)

    @rule()
    def write(self) -> None:
        parse = client.Response if self.delta else sotw_client.Response
        for line in self.lines.values():
            line.in_flight += [parse.FromString(raw) for raw in line.stream.outgoing(0.0)]

    @precondition(lambda self: any(line.in_flight for line in self.lines.values()))
    @rule(which=st.integers(0, 9), refuse=st.sampled_from([False, False, False, True]))
    def apply(self, which: int, refuse: bool) -> None:
        ready = [line for line in self.lines.values() if line.in_flight]
        line = ready[which % len(ready)]
        response = line.in_flight.pop(0)
        line.nonce = response.nonce
        if refuse and line.kind in (CDS, EDS) and response.resources:
            self._say(line, "refused", self.versions.get(line.kind, ""))
            return
        before = dict(self.held[line.kind])
        if self.delta:
            self.held[line.kind] |= {each.name: each.version for each in response.resources}
            for name in response.removed_resources:
                self.held[line.kind].pop(name, None)
        else:
            self.versions[line.kind] = response.version_info
            new = sotw_client.held(response)
            self.held[line.kind] = new if line.kind in (CDS, LDS) else self.held[line.kind] | new
        if line.kind == CDS:
            self._clusters(before)
        self._say(line, version=response.version_info if not self.delta else "")

    def _clusters(self, before: dict[str, str]) -> None:
        now = self.held[CDS]
        for name in before.keys() | now.keys():
            if before.get(name) != now.get(name):
                self.lines.pop((EDS, name), None)
                if name in now:
                    self._open(EDS, name, [name])
                else:
                    self.held[EDS].pop(name, None)

    @invariant()
    def converged_is_never_more_than_was_acknowledged(self) -> None:
        converged = min((stream.converged_revision(0.0) for stream in self.streams()), default=0)
        assert converged <= self.table.revision
        for kind, name in self.history:
            allowed = self.allowed(kind, name, converged)
            if not allowed or (kind == EDS and (None in allowed or name not in self.held[CDS])):
                continue
            assert self.held[kind].get(name) in allowed, (kind, name, converged)

    def teardown(self) -> None:
        if not self.lines:
            return
        for _ in range(100):
            self.write()
            while any(line.in_flight for line in self.lines.values()):
                self.apply(0, refuse=False)
        if any(status.refused for stream in self.streams() for status in stream.status().values()):
            return
        self.assert_all_held()
        assert min(stream.converged_revision(0.0) for stream in self.streams()) == self.table.revision
        assert not any(stream.outgoing(0.0) for stream in self.streams())


class DeltaSeparateSession(SeparateSession):
    delta = True


_SETTINGS = sessions(40)
TestSotwSeparateSession = SeparateSession.TestCase
TestSotwSeparateSession.settings = _SETTINGS
TestDeltaSeparateSession = DeltaSeparateSession.TestCase
TestDeltaSeparateSession.settings = _SETTINGS
