"""Says by name which of TensorFlow Serving's traps an instance is in: what its configuration wants, what its statuses
say over time, and what the disk shows come in, conditions (docs/conditions.md) come out. No I/O.

Invariant: a condition is told once in the log when it begins and once when it ends, and holds without a change of its
text while nothing changes. That an END stays listed for the life of the server, or that a dropped model's versions do,
is none: only an END of a version that is still wanted is.

Whether this machine's disk is the server's own is not known where the monitor was attached by address. It counts as
such once the folder of a version that the server calls AVAILABLE was seen under its base path; until then a missing
path says nothing. Beside a server that the monitor started it counts as such until something is AVAILABLE.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from monitor.disk import Look
from monitor.known import cut
from monitor.servables import Policy, VersionStatus, WatchedModel
from monitor.server_flags import ServerFlags
from monitor.told import ConditionKey, Told
from registry.records import Condition, ServableState

Answers = Mapping[WatchedModel, tuple[VersionStatus, ...] | None]
_START, _LOADING, _AVAILABLE, _END = (
    ServableState.START,
    ServableState.LOADING,
    ServableState.AVAILABLE,
    ServableState.END,
)
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds that something lasts before it counts as a trouble: a version on disk that the server has not taken up, a
    load, a START, a label without its version."""

    unseen: float = 5.0
    loading: float = 75.0
    start: float = 10.0
    label: float = 2.0

    @classmethod
    def of(cls, flags: ServerFlags) -> Limits:
        """A load that lasts for longer than the pause between two tries may be one that is tried again."""
        return cls(
            unseen=max(cls().unseen, 3.0 * flags.poll_wait), loading=max(10.0, 1.25e-6 * flags.load_retry_micros)
        )


@dataclass(frozen=True, slots=True)
class _Finding:
    name: str
    model: str
    text: str
    subject: str = ""
    after: float = 0.0

    @property
    def key(self) -> ConditionKey:
        return self.name, self.model, self.subject


@dataclass(frozen=True, slots=True)
class _View:
    """One model at one moment. `look` None: the disk says nothing of it. `answer` None: the server doesn't either."""

    model: WatchedModel
    answer: tuple[VersionStatus, ...] | None
    look: Look | None

    @property
    def policy(self) -> Policy:
        return self.model.policy or Policy()

    @property
    def missing(self) -> bool:
        return self.look is not None and self.look.there is False

    @property
    def chosen(self) -> frozenset[int]:
        """The versions on disk that are wanted."""
        return self.policy.choose(self.look.versions) if self.look else frozenset()

    @property
    def not_taken_up(self) -> frozenset[int]:
        """The versions on disk that are wanted, and that the server does not hold or know to be broken."""
        held = {one.version for one in self.answer or () if one.state is not _END or one.error}
        return frozenset() if self.answer is None else self.chosen - held

    @property
    def wanted(self) -> list[VersionStatus]:
        """The versions that the server tells of, less those that are not wanted any more: END stays listed."""
        answer = self.answer or ()
        known = self.chosen if self.look and self.look.there else self.policy.choose(one.version for one in answer)
        return [one for one in answer if one.version in known]


@dataclass(slots=True)
class Traps:
    """One instance. `owned`: the monitor started the server, so both see one disk."""

    told: Told
    flags: ServerFlags | None = None
    limits: Limits = field(default_factory=Limits)
    owned: bool = False
    one_disk: bool = False
    """Whether what was looked at last is what the server sees too."""
    _shared: bool = False
    _since: dict[ConditionKey, float] = field(default_factory=dict)

    def conditions(self, answers: Answers, looks: Mapping[str, Look], now: float) -> tuple[Condition, ...]:
        """What holds at `now`; `looks` is by base path. Call it again and again: most troubles show by lasting."""
        found = {one.key: one for one in self._find(answers, looks)}
        self._since = {key: self._since.get(key, now) for key in found}
        told = {
            key: Condition(one.name, cut(one.text), one.model)
            for key, one in found.items()
            if now - self._since[key] >= one.after
        }
        return self.told.update(told)

    def _find(self, answers: Answers, looks: Mapping[str, Look]) -> Iterator[_Finding]:
        self._shared = self._shared or any(_holds(model, answer, looks) for model, answer in answers.items())
        # A command can start a server in a container, with another disk: then something gets AVAILABLE that isn't here.
        shared = self._shared or (self.owned and not any(map(_serves, answers.values())))
        self.one_disk = shared
        seen = looks if shared else {}
        views = [_View(model, answer, seen.get(model.base_path)) for model, answer in answers.items()]
        missing = [view for view in views if view.missing]
        for view in views:
            yield from _on_disk(view)
            yield from self._loading(view, views)
            yield from self._labels(view)
            if not missing:
                yield from self._not_seen(view)
        if missing:
            yield from self._frozen(missing, views)
        if self.flags and self.flags.config_poll_wait > 0:
            yield from _blocked(views)

    def _loading(self, view: _View, views: Sequence[_View]) -> Iterator[_Finding]:
        name = view.model.name
        retries = self.flags.load_retries if self.flags else ServerFlags().load_retries
        for one in view.wanted:
            what, subject = f"model {name} version {one.version}", str(one.version)
            if one.error and one.state is _END:
                mend = "it is not tried again: put in a good version under another number, or take this one out, wait "
                mend += "for its END, and put it in again"
                yield _Finding("LoadFailed", name, f"{what}: {cut(one.error, 300)}; {mend}", subject)
            elif one.state is _LOADING and view.look and one.version in view.look.empty and retries:
                text = f"{what}: its folder under {view.model.base_path} holds no model, and the server tries again"
                yield _Finding("LoadRetrying", name, f"{text}, which shows no error until the last try", subject)
            elif one.state is _LOADING and retries:
                yield _Finding("LoadRetrying", name, f"{what}: {self._long_load()}", subject, self.limits.loading)
            elif one.state is _START:
                yield _Finding("LoadDelayed", name, f"{what}: {_held_up(views)}", subject, self.limits.start)

    def _long_load(self) -> str:
        flags = self.flags or ServerFlags()
        times = f"{flags.load_retries} times, {flags.load_retry_micros / 1e6:g} s apart"
        usual = "" if self.flags else " by default"
        return (
            f"LOADING for more than {self.limits.loading:g} s: either it loads slowly, or it fails and is tried again "
            f"({times}{usual}), which shows no error until the last try; the server's log has it"
        )

    def _labels(self, view: _View) -> Iterator[_Finding]:
        available = {one.version for one in view.answer or () if one.state is _AVAILABLE}
        if view.answer is None:
            return
        allowed = self.flags is not None and self.flags.labels_for_unavailable
        for label, version in view.model.labels:
            if version not in available:
                what = f"model {view.model.name}: the label {label} is on version {version}, which is not AVAILABLE"
                then = (
                    "requests by it get NOT_FOUND until that is loaded"
                    if allowed
                    else "TensorFlow Serving refuses a configuration that says so as a whole; first add the version, "
                    "then its label"
                )
                yield _Finding("LabelBeforeAvailable", view.model.name, f"{what}: {then}", label, self.limits.label)

    def _not_seen(self, view: _View) -> Iterator[_Finding]:
        name, base, after = view.model.name, view.model.base_path, self.limits.unseen
        if view.answer == () and not view.chosen and view.look is None:
            where = f"its base path {base} is missing or empty where the server runs" if base else "nothing says why"
            text = f"model {name}: the server knows no version of it: {where}, or it was not told of the model"
            yield _Finding("NotLoaded", name, text, after=after)
        elif view.answer == () and view.chosen:
            text = f"model {name}: {_versions(view.chosen)} under {base}, but the server knows none of it: it was not "
            text += "told of the model, or it still waits for another one, in a reload or with --num_load_threads=0"
            yield _Finding("NotLoaded", name, text, after=after)
        elif view.not_taken_up:
            text = f"model {name}: {_versions(view.not_taken_up)} under {base}, but not taken up by the server"
            yield _Finding("VersionsNotSeen", name, f"{text}: {self._why_not_seen()}", after=after)

    def _why_not_seen(self) -> str:
        if self.flags and self.flags.poll_wait <= 0:
            return f"it was started with --file_system_poll_wait_seconds={self.flags.poll_wait}; leave that out"
        return "it does not look at its disk, or has another version policy than its configuration file says"

    def _frozen(self, missing: Sequence[_View], views: Sequence[_View]) -> Iterator[_Finding]:
        culprits = {view.model.name for view in missing}
        if all(view.model.name in culprits for view in views):
            return
        waiting = [view for view in views if view.not_taken_up and view.model.name not in culprits]
        text = f"while the base path of {_names(sorted(culprits))} is missing, no new version of any model is seen"
        if waiting:
            text += "; waiting: " + _names([f"{one.model.name} {max(one.not_taken_up)}" for one in waiting])
        yield _Finding("OtherModelsFrozen", "", f"{text}; create that path, or take the model out of the configuration")


def _holds(model: WatchedModel, answer: Iterable[VersionStatus] | None, looks: Mapping[str, Look]) -> bool:
    """Whether a version that the server calls AVAILABLE is on this disk, too."""
    seen = looks.get(model.base_path)
    return seen is not None and any(one.state is _AVAILABLE and one.version in seen.versions for one in answer or ())


def _serves(answer: Iterable[VersionStatus] | None) -> bool:
    return any(one.state is _AVAILABLE for one in answer or ())


def _on_disk(view: _View) -> Iterator[_Finding]:
    model, look = view.model, view.look
    if look is None or look.there is None:
        return
    about = f"model {model.name}"
    specific = view.policy.specific
    if not look.there:
        then = (
            "what is loaded is served on, but put it back before the server is started again"
            if _serves(view.answer)
            else "the server waits for it, for ever; create it with a version folder in it, or take the model out"
        )
        yield _Finding("BasePathMissing", model.name, f"{about}: its base path {model.base_path} is not there; {then}")
    elif not view.chosen:
        held = f" (there: {_numbers(look.versions)})" if look.versions else ""
        wants = f"the versions that it asks for ({_numbers(specific)})" if specific else "a version"
        if specific == frozenset():
            return
        text = f"{about}: {wants} are not" if specific else f"{about}: {wants} is not"
        text += f" under {model.base_path}{held}; a version is a folder with a whole number for its name"
        yield _Finding("NoVersions", model.name, text)
    elif specific and specific - look.versions:
        text = f"{about}: version {_numbers(specific - look.versions)} that it asks for is not under {model.base_path}"
        yield _Finding("VersionMissing", model.name, f"{text} (there: {_numbers(look.versions)})")


def _held_up(views: Iterable[_View]) -> str:
    loading = [
        f"model {view.model.name} version {one.version}"
        for view in views
        for one in view.answer or ()
        if one.state is _LOADING
    ]
    before = f"it waits for {_names(loading)}" if loading else "the server is busy with another one"
    return f"START for long: {before}; with --num_load_threads=4 one load does not hold up the others"


def _blocked(views: Sequence[_View]) -> Iterator[_Finding]:
    """A server that follows its configuration file carries its change out as a reload, and so falls into its traps."""
    culprits = [one for one in views if one.answer == () and one.look and one.look.there is not None and not one.chosen]
    for view in culprits:
        where = "its base path is missing" if view.missing else "it has no version to load"
        text = f"the server's reload of its configuration file waits for model {view.model.name}: {where}; until then "
        yield _Finding("ReloadBlocked", view.model.name, f"{text}no further change of the file is carried out")
    if culprits and not any(view.missing for view in culprits):
        for view in views:
            if view.answer == () and view.chosen:
                text = f"model {view.model.name}: its reload waits behind the one of {culprits[0].model.name}"
                yield _Finding("ReloadQueued", view.model.name, text, after=5.0)


def _versions(numbers: Iterable[int]) -> str:
    listed = sorted(numbers)
    return f"version {_numbers(listed)} {'is' if len(listed) == 1 else 'are'}"


def _numbers(numbers: Iterable[int]) -> str:
    return _names([str(number) for number in sorted(numbers, reverse=True)])


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
