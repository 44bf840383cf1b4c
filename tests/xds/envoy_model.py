"""An Envoy as it was measured to be, without a network: how it warms clusters, and when it answers.

Invariant: a router or listener is taken whenever it comes, and what it names that is not active then is written down in
`missing`; nothing else here judges the server. "Measured": Envoy 1.40, docs/architecture.md and envoy#36951.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from control_plane.resources.resource import Resource
from control_plane.xds.delta import DeltaStream
from control_plane.xds.events import StreamEvent
from control_plane.xds.sotw import SotwStream
from control_plane.xds.stream import Stream
from control_plane.xds.table import ResourceTable
from tests.xds import client, sotw_client
from tests.xds.client import CDS, ECDS, EDS, LDS

Told = tuple[str, str, str, dict[str, str], set[str]]
"""Type, nonce, version_info, what came (name -> version), what went."""


class EnvoyModel:
    """Reads one response at a time, so that a test can stop anywhere. `bad`: versions that it refuses;
    `tells`: whether it says which."""

    def __init__(self, table: ResourceTable, *, delta: bool, settle: bool = True) -> None:
        self.table = table
        self.delta = delta
        self.now = 100.0
        self.bad: set[str] = set()
        self.tells = True
        self.requires: dict[str, frozenset[str]] = {}
        self.active: dict[str, str] = {}
        self.warming: dict[str, str] = {}
        self.held: dict[str, dict[str, str]] = {CDS: {}, EDS: {}, LDS: {}, ECDS: {}}
        self.missing: list[str] = []
        self.heard: list[tuple[str, list[str], set[str]]] = []
        self.events: list[StreamEvent] = []
        self._nonces: dict[str, str] = {}
        self._versions: dict[str, str] = {}
        self.connect()
        if settle:
            self.settle()

    # The control plane's side

    def change(self, *puts: Resource, removes: Iterable[tuple[str, str]] = ()) -> None:
        """Move the table by one revision; nothing is read."""
        self.requires |= {put.version: put.requires for put in puts}
        self.stream.notice(self.table.update(puts, removes, self.table.revision + 1), self.now)

    # Envoy's

    def connect(self) -> None:
        """A new stream. Whatever was on its way on the old one is lost."""
        machine: type[Stream] = DeltaStream if self.delta else SotwStream
        self.stream = machine(self.table, self.now)
        self._unread: list[Any] = []
        self._answers: list[tuple[Told, bool]] = []
        self._nonces.clear()
        self._asked: set[str] = set()
        # envoy#36951: no CDS request while a cluster warms.
        for kind in (EDS, LDS, ECDS) if self.warming else (CDS, EDS, LDS, ECDS):
            self._begin(kind)

    def _names(self, kind: str) -> list[str]:
        if kind == EDS:
            return sorted(self.active | self.warming)
        return ["router"] if kind == ECDS else []

    def _begin(self, kind: str) -> None:
        names = self._names(kind)
        if kind == EDS and not names:
            return
        self._asked.add(kind)
        if self.delta:
            claimed = {
                name: version for name, version in self.held[kind].items() if kind in (CDS, LDS) or name in names
            }
            self.stream.receive(client.request(kind, names, claimed=claimed), self.now)
        else:
            version = self._versions.get(kind, "")
            self.stream.receive(sotw_client.request(kind, names, version=version), self.now)

    def read(self) -> bool:
        """Take one response; False if there is none."""
        self._unread += self.stream.outgoing(self.now)
        self.events += self.stream.events()
        if not self._unread:
            return False
        told = self._parse(self._unread.pop(0))
        kind, _, version, came, went = told
        self.heard.append((kind, sorted(came), went))
        refused = not self.bad.isdisjoint(came.values())
        if not refused:
            # What it says of a type from now on, even if its answer has to wait.
            self._versions[kind] = version
        if kind == CDS:
            self._clusters(came, went)
            # Withheld, ACK or NACK, while any cluster warms.
            self._answers.append((told, refused))
        else:
            if kind == EDS:
                self._endpoints(came, went)
            elif not refused:
                self.held[kind] = {
                    name: version for name, version in (self.held[kind] | came).items() if name not in went
                }
                needed = {cluster for version in came.values() for cluster in self.requires.get(version, ())}
                self.missing += sorted(needed - self.active.keys())
            self._answer(told, refused)
        self._resume()
        return True

    def lose_unread(self) -> None:
        """Forget what the server has written and this has not read: as if it had never written it."""
        self.stream.outgoing(self.now)
        self._unread.clear()

    def _parse(self, raw: bytes) -> Told:
        if self.delta:
            response = client.Response.FromString(raw)
            came = {each.name: each.version for each in response.resources}
            return response.type_url, response.nonce, "", came, set(response.removed_resources)
        whole = sotw_client.Response.FromString(raw)
        came = sotw_client.held(whole)
        went = set(self.held[whole.type_url]) - came.keys() if whole.type_url in (CDS, LDS) else set()
        came = {name: version for name, version in came.items() if self.held[whole.type_url].get(name) != version} | (
            came if whole.type_url == EDS else {}
        )
        return whole.type_url, whole.nonce, whole.version_info, came, went

    def _clusters(self, came: dict[str, str], went: set[str]) -> None:
        before = set(self._names(EDS))
        for name, version in came.items():
            if version not in self.bad:
                # The good ones of a refused response are taken all the same.
                self.warming[name] = self.held[CDS][name] = version
        for name in went:
            self.active.pop(name, None)
            self.warming.pop(name, None)
            self.held[CDS].pop(name, None)
            self.held[EDS].pop(name, None)
        after = set(self._names(EDS))
        if EDS not in self._asked:
            self._begin(EDS)
        elif before != after and self.delta:
            self.stream.receive(client.request(EDS, sorted(after - before), sorted(before - after)), self.now)
        elif before != after:
            self._sotw(EDS)

    def _endpoints(self, came: dict[str, str], went: set[str]) -> None:
        for name in (came.keys() | went) & self.warming.keys():
            self.active[name] = self.warming.pop(name)
        for name, version in came.items():
            if name in self.held[CDS]:
                self.held[EDS][name] = version

    def _resume(self) -> None:
        if self.warming:
            return
        answers, self._answers = self._answers, []
        for told, refused in answers:
            self._answer(told, refused)
        if CDS not in self._asked:
            self._begin(CDS)

    def _answer(self, told: Told, refused: bool) -> None:
        kind, nonce, _, came, _ = told
        culprits = ", ".join(name for name, version in came.items() if version in self.bad)
        reason = f"Error adding/updating cluster(s) {culprits}: bad" if self.tells else "something is bad"
        error = reason if refused else None
        if self.delta:
            self.stream.receive(client.request(kind, nonce=nonce, error=error), self.now)
            return
        self._nonces[kind] = nonce
        self._sotw(kind, error)

    def _sotw(self, kind: str, error: str | None = None) -> None:
        nonce, version = self._nonces.get(kind, ""), self._versions.get(kind, "")
        asked = sotw_client.request(kind, self._names(kind), version=version, nonce=nonce, error=error)
        self.stream.receive(asked, self.now)

    def settle(self, seconds: float = 0.5) -> None:
        """Read until there is nothing more, for so long."""
        end = self.now + seconds
        while self.now <= end:
            while self.read():
                pass
            self.now += 0.125
        self.events += self.stream.events()

    @property
    def complete(self) -> bool:
        """It has everything that the table has, and every cluster is active."""
        return not self.warming and all(
            self.held[kind] == {name: entry.resource.version for name, entry in self.table.entries(kind).items()}
            for kind in self.held
        )

    @property
    def converged(self) -> bool:
        """The server knows it."""
        return self.stream.converged_revision(self.now) == self.table.revision
