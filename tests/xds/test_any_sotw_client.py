"""The same client as in test_any_client.py, in the state of the world: what it asks for is a list that every request
repeats, what it no longer has to have is left out of a response, and a request with a stale nonce says nothing."""

from __future__ import annotations

from control_plane.xds.sotw import SotwStream, no_endpoints
from tests.xds.client import EDS
from tests.xds.session_settings import sessions
from tests.xds.sotw_client import Response, held, request
from tests.xds.test_any_client import NAMES, ROOTS, AnyClient

NOTHING = {name: no_endpoints(name).version for name in NAMES}


class AnySotwClient(AnyClient):
    """Its answers come late or in turn, but always in order."""

    def _connect(self) -> None:
        super()._connect()
        self.stream = SotwStream(self.table, self.now)
        self.nonces: dict[str, str] = {}
        self.explicit: set[str] = set()
        if not hasattr(self, "versions"):
            self.versions: dict[str, str] = {}

    def _request(self, kind, error=None) -> None:
        asked = sorted(self.names[kind])
        if kind in self.all and (asked or kind in self.explicit):
            asked.append("*")
        elif kind in ROOTS and kind not in self.all and not asked and kind not in self.explicit:
            # An empty list would go on meaning everything.
            asked = [""]
        if asked:
            self.explicit.add(kind)
        version, nonce = self.versions.get(kind, ""), self.nonces.get(kind, "")
        self.stream.receive(request(kind, asked, version=version, nonce=nonce, error=error), self.now)

    def _first_request(self, kind, asked) -> None:
        self.asked.add(kind)
        self.held[kind] = {name: version for name, version in self.held[kind].items() if self.wants(kind, name)}
        if not self.held[kind]:
            self.versions.pop(kind, None)
        if "*" in asked:
            self.explicit.add(kind)
        self._request(kind)

    def _say(self, kind, add=(), remove=(), **answer) -> None:
        if "*" in add:
            self.explicit.add(kind)
        self._request(kind)

    def read(self) -> None:
        self.in_flight += [Response.FromString(raw) for raw in self.stream.outgoing(self.now)]

    def _must_be_answered(self) -> None:
        """It can ask for nothing that it has, and silence is the answer about some of what there is not."""

    def apply(self, later, partly) -> None:
        response = self.in_flight.pop(0)
        kind, came = response.type_url, held(response)
        refused = not self.bad.isdisjoint(came.values())
        if partly or not refused:
            good = {name: version for name, version in came.items() if version not in self.bad}
            kept = {name: version for name, version in self.held[kind].items() if kind not in ROOTS or name in came}
            absent = {name for name, version in good.items() if kind == EDS and version == NOTHING[name]}
            known = {**kept, **good}
            self.held[kind] = {name: known[name] for name in known if name not in absent and self.wants(kind, name)}
        if not refused:
            self.versions[kind] = response.version_info
        self.unanswered.append((response, refused))
        if not later:
            self.answer()

    def answer(self) -> None:
        response, refused = self.unanswered.pop(0)
        self.nonces[response.type_url] = response.nonce
        self._request(response.type_url, "bad" if refused else None)

    def expected(self, kind: str, wanted: dict[str, str]) -> dict[str, str]:
        if kind in ROOTS:
            return wanted
        # Of these types nothing tells it that something is gone.
        return {**{name: version for name, version in self.held[kind].items() if name not in wanted}, **wanted}


TestAnySotwClient = AnySotwClient.TestCase
TestAnySotwClient.settings = sessions(40, steps=30)
