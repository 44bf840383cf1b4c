"""Monitors of others that take an instance of the local stack. Pure.

Invariant: each claim of another monitor is told once. A monitor that is superseded need not end at once: its server may
have to drain, or may be the very one that the newer monitor watches; so its exit code alone would come late or never.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from registry.claims import Claim, decode_claim
from registry.follow import Changes, Connection, Snapshot, Update
from registry.keys import ClaimKey, Keyspace
from registry.records import RecordError


class Rivals:
    """Takes the registry's updates in, in order. `ours`: whether a claim is of one of the stack's own processes."""

    def __init__(self, keyspace: Keyspace, names: Iterable[str], ours: Callable[[Claim], bool]) -> None:
        self._keys = {keyspace.make(ClaimKey(name)): name for name in names}
        self._ours = ours
        self._told: dict[str, Claim] = {}

    def apply(self, update: Update) -> list[str]:
        """A line for each instance that another monitor has claimed."""
        match update:
            case Snapshot(entries=entries) | Changes(puts=entries):
                found = ((self._keys[key], raw) for key, raw in entries.items() if key in self._keys)
                return [line for name, raw in found for line in self._one(name, raw)]
            case Connection():
                return []

    def _one(self, name: str, raw: bytes) -> list[str]:
        try:
            claim = decode_claim(raw)
        except RecordError:
            return []
        if self._ours(claim) or self._told.get(name) == claim:
            return []
        self._told[name] = claim
        return [
            f"{name} is taken over by {claim}; the monitor of this stack gives way. If both are meant to run, give the "
            "other an --instance of its own, or this stack a --prefix"
        ]
