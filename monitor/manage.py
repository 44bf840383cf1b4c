"""What a managed server is to hold next, on its way to its assignment. Pure: the assignment, what the server and its
proofs say, what is in force and the time come in; the configuration, what takes no new requests, and troubles by name
come out. monitor/manager.py is the shell, monitor/reload.py brings the server to that configuration.

The way of one model: the new versions are added to the old ones; they load and are proved; what is not assigned any
more then takes no new requests (`retired`); when nothing is in flight on it, it leaves the configuration. Invariants:

- A version that may be an endpoint leaves the configuration only when it is drained.
- No more than what is assigned is ever added; what was found there before is kept only until it is drained.
- The old versions of a model that stays assigned are kept until one of those assigned answers, and the others have been
  loaded and proved, have failed, or had their time.
- What is not known now (a server that does not answer) changes nothing, and no model waits for another.

A version that fails to load stays an END with an error as long as it is configured. So it is taken out, which makes the
server forget it, and put in again after a pause, `tries` times in all, and again once its files have changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from monitor.manage_told import about_model, owned
from monitor.servables import HeldVersion, Policy, WatchedModel
from monitor.told import ConditionKey
from registry.assignments import AssignedModel, Assignment
from registry.records import Condition, Proof, ServableState

_MOVING = (ServableState.START, ServableState.LOADING, ServableState.UNLOADING)
_LIVE = (ServableState.START, ServableState.LOADING, ServableState.AVAILABLE)
Held = Mapping[int, HeldVersion]


@dataclass(frozen=True, slots=True)
class ManageTiming:
    """Seconds. `notice`: from a change that is in force to the server's having seen it (a poll of its disk every second
    and a tick); `again`: the same for what was taken out and put back, beside a busy server. `load`: after it an
    assigned version is not waited for any longer. `first`, `last`: pauses between two tries to load a version; `tries`:
    so many. `unlisted`: how long the first reload waits for the drain of a model of which only the name is known."""

    notice: float = 2.0
    again: float = 5.0
    load: float = 600.0
    first: float = 5.0
    last: float = 300.0
    tries: int = 5
    unlisted: float = 60.0


@dataclass(frozen=True, slots=True)
class Target:
    """One model in the configuration."""

    base_path: str
    platform: str
    versions: frozenset[int]
    labels: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Attempt:
    """To load one assigned version. `out`: it is kept out of the configuration, to be tried again from `until` on."""

    tries: int = 0
    error: str = ""
    out: bool = False
    given_up: bool = False
    until: float = 0.0
    files: object = None
    """What its files looked like when it failed."""
    sent_at: float | None = None
    gone_at: float | None = None
    moved: bool = False


@dataclass(slots=True)
class ManagedModel:
    """`target`: its versions in the configuration that is wanted. `seen`: the server was asked for it once."""

    base_path: str
    platform: str = ""
    assigned: AssignedModel | None = None
    since: float = 0.0
    seen: bool = False
    target: frozenset[int] = frozenset()
    retired: frozenset[int] = frozenset()
    dropped: frozenset[int] = frozenset()
    """Those of the retired ones that have left the configuration: the server may be about to unload them."""
    attempts: dict[int, Attempt] = field(default_factory=dict)
    kept_old: bool = False
    unloading: bool = False
    """All that is there was to go before it was assigned again, from another folder: it goes first."""

    @property
    def versions(self) -> frozenset[int]:
        """Those that are assigned, as far as they can be loaded beside what is there."""
        if self.assigned is None:
            return frozenset()
        if self.moved_away:
            return frozenset() if self.unloading else self.target
        return frozenset(self.assigned.versions)

    @property
    def moved_away(self) -> bool:
        """Whether its assignment is to another folder or kind than what is there."""
        if self.assigned is None or not self.target:
            return False
        return (self.base_path, self.platform) != (self.assigned.base_path, self.assigned.platform)


@dataclass(slots=True)
class Manage:
    """One server. `own`: the models of its own configuration, which are none of this."""

    own: frozenset[str] = frozenset()
    timing: ManageTiming = field(default_factory=ManageTiming)
    _models: dict[str, ManagedModel] = field(default_factory=dict)
    _refused: frozenset[str] = frozenset()
    _known: bool = False
    _complete: bool = False
    _ready: frozenset[tuple[str, int]] = frozenset()
    _began: float = 0.0

    # --- observations -------------------------------------------------------------------------------------------

    def found(self, names: Mapping[str, str], ready: frozenset[tuple[str, int]], now: float) -> None:
        """Models that the server may hold from before, with their base paths, empty where unknown; `ready`: versions
        that have been endpoints ever since."""
        self._began, self._ready = now, ready
        for name, base_path in names.items():
            if name not in self.own and name not in self._models:
                self._models[name] = ManagedModel(base_path)

    def assign(self, assignment: Assignment, now: float) -> None:
        """This is wanted from now on."""
        self._known = True
        self._refused = frozenset(assignment.models.keys() & self.own)
        wanted = {name: one for name, one in assignment.models.items() if name not in self.own and one.versions}
        for name, one in wanted.items():
            self._models.setdefault(name, ManagedModel(one.base_path))
        for name, model in self._models.items():
            self._reassign(model, wanted.get(name), now)

    def _reassign(self, model: ManagedModel, wanted: AssignedModel | None, now: float) -> None:
        if wanted == model.assigned:
            return
        model.assigned, model.since = wanted, now
        if wanted is None:
            model.attempts.clear()
            model.unloading = True
            return
        if not model.target or not model.base_path:
            model.base_path, model.platform = wanted.base_path, wanted.platform
        model.platform = model.platform or wanted.platform
        model.attempts = {one: model.attempts.get(one, Attempt()) for one in wanted.versions}

    def restarted(self) -> None:
        """The server does not answer, so it may be another one when it does: every version may be tried again."""
        for model in self._models.values():
            model.attempts = {version: Attempt() for version in model.attempts}

    def step(
        self,
        held: Mapping[str, Held | None],
        in_force: Mapping[str, frozenset[int]],
        possible: Mapping[str, frozenset[int]],
        files: Mapping[tuple[str, int], object],
        now: float,
    ) -> None:
        """Decide anew. `held`: what the server says of each model; None: nothing at present. `in_force`: the versions
        in the configuration that it certainly has; `possible`: in any that it may have, or get. `files`: what versions
        look like on its disk, by base path and number, where that can be seen; equal as long as they don't change."""
        for name, model in list(self._models.items()) if self._known else ():
            there = held.get(name)
            if there is None:
                continue
            may_come = possible.get(name, frozenset())
            if not model.seen:
                self._first_look(name, model, there)
            self._adopt(model, there, may_come)
            for version, attempt in model.attempts.items():
                look = files.get((model.base_path, version))
                self._follow(attempt, there.get(version), version in in_force.get(name, ()), look, now)
            self._decide(model, there, now)
            ended = not may_come and not any(one.state in _LIVE for one in there.values())
            if model.assigned is None and not model.target and ended:
                del self._models[name]

    # --- decisions ----------------------------------------------------------------------------------------------

    @property
    def models(self) -> frozenset[str]:
        """Those whose state has to be known."""
        return frozenset(self._models)

    def targets(self, now: float) -> Mapping[str, Target] | None:
        """What the configuration shall hold beside the server's own models; None: it can't be said yet, or nobody has
        said it, and everything stays as it is."""
        # At first all have to be known; one that comes later holds up nobody.
        self._complete = self._complete or (self._known and all(model.seen for model in self._models.values()))
        if not self._complete:
            return None
        unlisted = any(model.target and not model.base_path for model in self._models.values())
        if unlisted and now < self._began + self.timing.unlisted:
            return None
        return {name: _target(model) for name, model in self._models.items() if model.target and model.base_path}

    @property
    def retired(self) -> frozenset[tuple[str, int]]:
        """Versions that take no new requests any more."""
        return frozenset((name, version) for name, model in self._models.items() for version in model.retired)

    def watched(self) -> tuple[WatchedModel, ...]:
        """What the monitor has to watch and prove."""
        return tuple(_watched(name, model) for name, model in sorted(self._models.items()))

    def conditions(self, held: Mapping[str, Held | None], now: float) -> Mapping[ConditionKey, Condition]:
        """The troubles that hold now."""
        found: dict[ConditionKey, Condition] = {}
        for name, model in self._models.items():
            late = now >= model.since + self.timing.load
            found |= about_model(name, model, held.get(name) or {}, late=late, tries=self.timing.tries)
        return found | owned(self._refused)

    # --- inside -------------------------------------------------------------------------------------------------

    def _first_look(self, name: str, model: ManagedModel, there: Held) -> None:
        """What drained for the monitor before, and is not assigned, may be gone at any moment."""
        live = {version for version, one in there.items() if one.state in _LIVE}
        drained = {one for one in live if (name, one) not in self._ready and not there[one].answers} - model.versions
        model.target |= drained
        model.retired |= drained

    def _adopt(self, model: ManagedModel, there: Held, may_come: frozenset[int]) -> None:
        """What somebody else had it load is kept until it is drained, as if it had been assigned."""
        model.seen = True
        live = {version for version, one in there.items() if one.state in _LIVE}
        model.target |= live - model.retired
        # Until it is gone: it may become AVAILABLE after it was taken out of the configuration.
        model.retired &= live | may_come | (model.target - model.versions)
        model.dropped &= live | may_come

    def _follow(self, attempt: Attempt, one: HeldVersion | None, configured: bool, files: object, now: float) -> None:
        if attempt.out and files is not None and files != attempt.files:
            attempt.files, attempt.given_up, attempt.tries, attempt.until = files, False, 0, now
        if not configured:
            attempt.sent_at, attempt.moved = None, False
            attempt.gone_at = now if attempt.gone_at is None else attempt.gone_at
            forgotten = now >= attempt.gone_at + self.timing.notice
            if attempt.out and forgotten and not attempt.given_up and now >= attempt.until:
                attempt.out = False
            return
        attempt.gone_at = None
        attempt.sent_at = now if attempt.sent_at is None else attempt.sent_at
        if one is None or attempt.out:
            return
        if one.state is not ServableState.END:
            attempt.moved = True
            if one.state is ServableState.AVAILABLE:
                attempt.tries, attempt.error = 0, ""
        elif one.error and (attempt.moved or now >= attempt.sent_at + self.timing.notice):
            # Before that it may be the END of the last try, which stays listed.
            attempt.tries, attempt.error, attempt.out, attempt.files = attempt.tries + 1, one.error, True, files
            attempt.until = now + min(self.timing.first * 2.0 ** (attempt.tries - 1), self.timing.last)
            attempt.given_up = attempt.tries >= self.timing.tries

    def _take_back(self, model: ManagedModel, there: Held, now: float) -> None:
        """What is assigned again takes requests again. What had left the configuration already is unloaded, however
        soon it was put back, if the server saw that; and while another version loads it may keep it until then. So it
        has to be gone and loaded anew, or to be there for a while in which nothing else happens."""
        moving = any(there[version].state in _MOVING for version in model.target & there.keys())
        for version in model.retired & model.versions:
            attempt = model.attempts.get(version)
            if attempt is None or version not in model.dropped:
                model.retired -= {version}
                continue
            if moving:
                attempt.sent_at = None
            elif attempt.sent_at is not None and now >= attempt.sent_at + self.timing.again:
                model.retired -= {version}
                model.dropped -= {version}

    def _decide(self, model: ManagedModel, there: Held, now: float) -> None:
        self._take_back(model, there, now)
        assigned = model.versions
        leaving = model.target - assigned
        model.kept_old = False
        if not leaving:
            pass
        elif self._may_retire(model, there, now):
            model.retired |= leaving
        else:
            model.retired |= {version for version in leaving if _useless(there.get(version))}
        gone = {version for version in leaving & model.retired if _out_of_use(there.get(version))}
        out = {version for version, attempt in model.attempts.items() if attempt.out} if not model.moved_away else set()
        model.target = (assigned - out) | (leaving - gone)
        model.dropped |= gone
        if model.assigned is not None and not model.moved_away:
            model.unloading = False
        if not model.target and model.assigned is not None:
            model.base_path, model.platform = model.assigned.base_path, model.assigned.platform

    def _may_retire(self, model: ManagedModel, there: Held, now: float) -> bool:
        """Whether the old versions can do without new requests."""
        if model.assigned is None or (model.unloading and model.moved_away):
            return True
        answering = {version for version, one in there.items() if one.answers} - model.retired
        waits = [one for one in model.assigned.versions if one not in answering and _undecided(model, there, one)]
        if waits and now < model.since + self.timing.load:
            return False
        model.kept_old = not answering & set(model.assigned.versions)
        return not model.kept_old


def _undecided(model: ManagedModel, there: Held, version: int) -> bool:
    """Whether an assigned version that does not answer may do so soon."""
    attempt, one = model.attempts.get(version), there.get(version)
    if attempt is not None and attempt.out:
        return False
    waits = one is None or one.state is not ServableState.AVAILABLE or one.proof is Proof.PENDING
    return waits or version in model.retired


def _useless(one: HeldVersion | None) -> bool:
    """Whether nobody can be answered by it. One that is not proved yet may be an endpoint since an earlier monitor."""
    if one is None or one.state is not ServableState.AVAILABLE:
        return True
    return not one.answers and one.proof is Proof.FAILED


def _out_of_use(one: HeldVersion | None) -> bool:
    """Whether nothing can be in flight on it, now or later, as nobody is sent there."""
    return one is None or one.state is not ServableState.AVAILABLE or one.drained


def _target(model: ManagedModel) -> Target:
    labels = model.assigned.labels if model.assigned and not model.moved_away else {}
    there = {label: version for label, version in labels.items() if version in model.target}
    return Target(model.base_path, model.platform or "tensorflow", model.target, there)


def _watched(name: str, model: ManagedModel) -> WatchedModel:
    assigned = model.assigned
    policy = Policy(specific=frozenset(assigned.versions if assigned else ()))
    warm_up = assigned.warm_up_requests if assigned else 0
    # While it goes from one version to the next it holds both.
    return WatchedModel(name, model.base_path, True, policy, warm_up_requests=warm_up, managed=True)
