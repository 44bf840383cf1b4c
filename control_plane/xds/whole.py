"""What the responses of a state-of-the-world stream say of a type whose responses hold everything (LDS, CDS).

Invariant: `sent` is what the newest response held; a name that the client has refused is there as it was when the
client last ACKed it. So a response never takes away what is only held back or refused. Costs what changes; memory
follows the number of resources, which are shared.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from hashlib import blake2b

from control_plane.resources.resource import Resource

_MODULUS = 1 << 128


def _weight(resource: Resource) -> int:
    content = f"{resource.name}\0{resource.version}".encode()
    return int.from_bytes(blake2b(content, digest_size=16).digest(), "big")


def content_version(resources: Iterable[Resource]) -> str:
    """The version_info of a response that holds these, in whatever order: equal content, equal version."""
    return f"{sum(map(_weight, resources)) % _MODULUS:032x}"


class WholeState:
    """One type on one stream. `unknown`: the client may hold something that this stream has not sent."""

    def __init__(self) -> None:
        self._sent: dict[str, Resource] = {}
        self._sum = 0
        self._unproven: dict[str, list[tuple[int, Resource | None]]] = {}
        self.unknown = False

    @property
    def sent(self) -> Mapping[str, Resource]:
        """What the newest response held, or will hold."""
        return self._sent

    @property
    def version(self) -> str:
        """`content_version` of it."""
        return f"{self._sum % _MODULUS:032x}"

    def claimed(self, resources: Iterable[Resource]) -> None:
        """The client has exactly these."""
        for resource in resources:
            self._set(resource.name, resource)

    def put(self, name: str, resource: Resource | None, sequence: int) -> None:
        """That response is the first with this state of the name; None: without it."""
        history = self._unproven.setdefault(name, [(0, self._sent.get(name))])
        history.append((sequence, resource))
        self._set(name, resource)

    def acked(self, names: Iterable[str], sequence: int) -> None:
        """The client has what that response said of these."""
        self.unknown = False
        for name in names:
            history = self._unproven.get(name)
            if history is None:
                continue
            while len(history) > 1 and history[1][0] <= sequence:
                del history[0]
            if len(history) == 1:
                del self._unproven[name]

    def refused(self, names: Iterable[str], sequence: int, taken: Container[str] = ()) -> None:
        """The client has refused what was said of these up to that response: they go back to what it ACKed last. But
        a new one that it has `taken` all the same would be removed by that, and something may name it already."""
        for name in names:
            history = self._unproven.get(name)
            if history is None or (history[0][1] is None and name in taken):
                continue
            history[1:] = [entry for entry in history[1:] if entry[0] > sequence]
            self._set(name, history[-1][1])
            if len(history) == 1:
                del self._unproven[name]

    def forget(self, name: str) -> None:
        """The client no longer wants this name."""
        self._unproven.pop(name, None)
        self._set(name, None)

    def _set(self, name: str, resource: Resource | None) -> None:
        before = self._sent.pop(name, None)
        if before is not None:
            self._sum -= _weight(before)
        if resource is not None:
            self._sent[name] = resource
            self._sum += _weight(resource)
