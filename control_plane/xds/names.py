"""The names that a client has subscribed to, of which most clients have nearly all that there are.

Invariant: a `Names` behaves as a set does; what it takes is its difference to a set that all streams share, so a
thousand Envoys that know ten thousand models cost no more than the names of ten thousand models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableSet

_FEW = 64
"""Below this a difference is not worth a look."""
_CLOSE = 8
"""A shared set is made anew for names of which more than one in so many are different."""


class Rosters:
    """One set of names per type, made anew when somebody needs one and the last has become too different. `known`: all
    names that there are of a type."""

    def __init__(self, known: Callable[[str], Iterable[str]]) -> None:
        self._known = known
        self._rosters: dict[str, frozenset[str]] = {}

    def near(self, type_url: str, names: set[str]) -> frozenset[str]:
        """One that `names` differ from less than from nothing at all, or nothing. Linear, in C."""
        roster = self._rosters.get(type_url, frozenset())
        difference = len(roster ^ names)
        # A client of only some of the names is near to no roster, and a reason for none.
        if difference * _CLOSE > len(names) and 2 * len(names) > len(roster):
            fresh = frozenset(self._known(type_url))
            if len(fresh ^ names) < difference:
                roster = self._rosters[type_url] = fresh
        return roster if len(roster ^ names) < len(names) else frozenset()


class Names(MutableSet[str]):
    """The names of one type on one stream. Adding and removing takes constant time, averaged over many."""

    __slots__ = ("_look_at", "_missing", "_more", "_roster", "_rosters", "_type_url")

    def __init__(self, rosters: Rosters, type_url: str) -> None:
        self._rosters, self._type_url = rosters, type_url
        self._roster: frozenset[str] = frozenset()
        self._missing: set[str] = set()
        self._more: set[str] = set()
        self._look_at = _FEW

    @classmethod
    def _from_iterable(cls, it: Iterable[str]) -> set[str]:  # type: ignore[override]
        # What the operators of a set give is a plain one.
        return set(it)

    def __contains__(self, name: object) -> bool:
        return (name in self._roster and name not in self._missing) or name in self._more

    def __iter__(self) -> Iterator[str]:
        if self._missing:
            yield from (name for name in self._roster if name not in self._missing)
        else:
            yield from self._roster
        yield from self._more

    def __len__(self) -> int:
        return len(self._roster) - len(self._missing) + len(self._more)

    def add(self, value: str) -> None:
        """Add a name."""
        if value in self._roster:
            self._missing.discard(value)
        else:
            self._more.add(value)
            self._look()

    def discard(self, value: str) -> None:
        """Take a name out, if it is in."""
        if value in self._roster:
            self._missing.add(value)
            self._look()
        else:
            self._more.discard(value)

    def update(self, names: Iterable[str]) -> None:
        """Add many."""
        fresh = set(names)
        self._missing -= fresh
        self._more |= fresh - self._roster
        self._look()

    @property
    def own(self) -> int:
        """How many names this one keeps for itself."""
        return len(self._missing) + len(self._more)

    def _look(self) -> None:
        """Look for a closer set to share once the difference has doubled."""
        if self.own < self._look_at:
            return
        names = set(self)
        self._roster = self._rosters.near(self._type_url, names)
        self._missing, self._more = set(self._roster - names), names - self._roster
        self._look_at = max(_FEW, 2 * self.own)
