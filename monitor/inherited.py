"""Endpoints that an earlier monitor of the same instance left, and that stand until this one knows better. Pure.

Invariant: what is inherited is dropped for good as soon as this monitor has an answer of its own, so that it never
comes back once it was taken over or found untrue.

Of the same server: until the server says that it does not hold the version, or its first probe has ended, or it can't
be reached. Of another server, one that is still there (two monitors claim one instance, or it moves while it serves):
until this monitor's own server has proved that version, or `release`.
"""

from __future__ import annotations

from collections.abc import Mapping

from monitor.known import KnownModel
from registry.addresses import join_address
from registry.keys import ReadyKey
from registry.records import Proof, ReadyRecord, ServableState


class Inherited:
    """`here`: READY records of the server that is watched; `elsewhere`: of another one."""

    def __init__(
        self,
        here: Mapping[ReadyKey, ReadyRecord] | None = None,
        elsewhere: Mapping[ReadyKey, ReadyRecord] | None = None,
    ) -> None:
        self._here = dict(here or {})
        self._elsewhere = dict(elsewhere or {})

    @property
    def models(self) -> frozenset[str]:
        """The models of which anything is left."""
        return frozenset(key.model for key in (*self._here, *self._elsewhere))

    @property
    def places(self) -> frozenset[tuple[str, int]]:
        """Address and gRPC port of each other server to which something that is left leads."""
        return frozenset((record.address, record.grpc_port) for record in self._elsewhere.values())

    @property
    def text(self) -> str:
        """What is left of another server, for people; empty: nothing."""
        if not self._elsewhere:
            return ""
        places = ", ".join(sorted(join_address(*place) for place in self.places))
        return f"{len(self._elsewhere)} endpoints of an earlier monitor, at {places}, stand until they are proved here"

    def release(self) -> None:
        """Nothing of another server is true any more."""
        self._elsewhere.clear()

    def unreachable(self) -> None:
        """The server that is watched is not there."""
        self._here.clear()

    def standing(self, model: KnownModel) -> dict[ReadyKey, ReadyRecord]:
        """What still stands of one model, in place of what this monitor's own knowledge gives these keys."""
        name = model.watched.name
        for key in [key for key in self._here if key.model == name and not self._stands(model, key.version)]:
            del self._here[key]
        proved = {number for number, version in model.versions.items() if version.ready}
        for key in [key for key in self._elsewhere if key.model == name and key.version in proved]:
            del self._elsewhere[key]
        left = (*self._elsewhere.items(), *self._here.items())
        return {key: record for key, record in left if key.model == name}

    @staticmethod
    def _stands(model: KnownModel, number: int) -> bool:
        if model.answer is None:
            return not model.trouble
        version = model.versions.get(number)
        pending = version is not None and not version.ready and version.course.proof is Proof.PENDING
        return pending and version is not None and version.state is ServableState.AVAILABLE
