"""Watches one instance. No I/O: observations and the time come in, probes and what its registry keys shall say go out
(instance_keys.py builds these).

Invariant: a key is READY only for a version that the server called AVAILABLE in its latest answer and whose present
load (incarnation) was proved, or trusted with a reason, since the server was last unreachable. Everything else that is
known of the instance stands in its `instances/` record, so that "why is it not served" has an answer.

How one version goes (states as in facts of TF Serving: they only ever rise while one load lasts, so a state that falls
is a new load and has to be proved again; END stays listed for the life of the server):

    START, LOADING              -> key LOADING (announced: the model is known, this is no endpoint); none if `removed`
    AVAILABLE, not yet proved   -> key LOADING, probe
    AVAILABLE, proved/trusted   -> key READY, and probed again now and then
    AVAILABLE, fails by now     -> key FAILING: an endpoint only where there is no better one (proof_course.py)
    AVAILABLE, probe failed     -> key LOADING still: known, but no endpoint; probed again, for a model can recover
    UNLOADING, END, not listed  -> no key, at once

What an operator wants drained (`wish`) goes another way for as long as that is wanted:

    AVAILABLE, proved or not    -> key DRAINING, until nothing is in flight (`drained`), and DRAINED from then on

It is watched and proved all the while, so that it is READY at once when it is taken back.

With one exception to the above: where a server holds one version at a time, it swaps by itself, and answers whoever
names no version from the new one at once. The old key stays until the new version's first probe has ended, or the model
would have no endpoint on this instance for that long although it never stopped answering.

The server as a whole counts as unreachable after FAILURES calls in a row without one answer, over more than one poll
interval if it could not be connected to, and over `slow_for` seconds if it was merely slow: a server under heavy load
answers late, and taking it out for that would shift its load to the next. A short loss of the connection may hide a
restart, so what is READY is probed again after it, and stays READY meanwhile.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain

from monitor.inherited import Inherited
from monitor.instance_keys import About, InstanceKeys
from monitor.known import KnownModel, KnownVersion, bridges_a_swap, held_versions, told_hang, told_proof
from monitor.proof_course import Course, ReproofPolicy, Reproofs
from monitor.servables import HeldVersion, Outcome, PollFailure, Probe, VersionStatus, WatchedModel
from monitor.wished import Wished
from registry.drains import DrainRecord
from registry.keys import Key, ReadyKey
from registry.records import (
    Condition,
    InstanceRecord,
    InstanceState,
    Proof,
    ReadyRecord,
    ServableState,
)

log = logging.getLogger(__name__)

FAILURES = 3
_RANK = {state: rank for rank, state in enumerate(ServableState)}
_ANNOUNCED = (ServableState.START, ServableState.LOADING)


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. `poll_interval`: between two looks at one model if there are few; `slow_for` as in the module's text."""

    poll_interval: float = 0.1
    slow_for: float = 4.0
    reproof: ReproofPolicy = field(default_factory=ReproofPolicy)


class MonitorCore:
    """One instance. `endpoint` is what a ready key of it says, with any state; `patient`: not to be reached at first is
    no fault (an owned server opens its port only once the first version of every model has loaded)."""

    def __init__(
        self,
        instance: str,
        endpoint: ReadyRecord,
        monitor_version: str = "",
        timing: Timing | None = None,
        *,
        patient: bool = False,
        about: About | None = None,
    ) -> None:
        self.instance = instance
        self._timing = timing or Timing()
        self._patient = patient
        self._models: dict[str, KnownModel] = {}
        self.probes: Counter[Proof] = Counter()
        self.reconnects = 0
        """How often the server answered again after its connection was lost."""
        self._wished = Wished(instance, self._models)
        self._reproofs = Reproofs(self._timing.reproof)
        self._keys = InstanceKeys(
            instance, endpoint, monitor_version, self._models, self._wished, self._reproofs, about or About()
        )
        self._hung = False
        self._failures = 0
        self._failing_since = 0.0
        self._cut_off = False
        self._incarnations = 0

    @property
    def touched(self) -> bool:
        """Something may have changed: `changes` and `due` are worth a call. They are not after most polls."""
        return self._keys.touched

    @property
    def draining(self) -> bool:
        """Whether `drain` was called; there is no way back."""
        return self._keys.draining

    @property
    def models(self) -> tuple[WatchedModel, ...]:
        """All models to be polled: those named by the server's configuration, and those that it still holds."""
        return tuple(model.watched for model in self._models.values())

    @property
    def reachable(self) -> bool:
        """Whether the server answers, as far as is known."""
        return self._keys.state in (InstanceState.SERVING, InstanceState.DRAINING)

    def answers(self) -> dict[WatchedModel, tuple[VersionStatus, ...] | None]:
        """The latest answer for each model that the server's configuration names; None: there is none."""
        return {model.watched: model.answer for model in self._models.values() if model.listed}

    # --- observations -------------------------------------------------------------------------------------------

    def set_models(self, models: Iterable[WatchedModel]) -> None:
        """The server's flags or config file name these models now. One that is gone from the list is watched on until
        the server has unloaded it: the file says what is wanted, the server says what is."""
        self._keys.touch()
        wanted = {model.name: model for model in models}
        for name, watched in wanted.items():
            known = self._models.setdefault(name, KnownModel(watched))
            known.watched, known.listed = watched, True
            self._keys.touch(name)
        for name, known in list(self._models.items()):
            if name not in wanted:
                known.listed = False
                self._forget_if_gone(name, known)

    def inherit(self, inherited: Inherited) -> None:
        """What an earlier monitor left: it stands where `inherited` says so. To be called before anything is handed
        over; `release` ends what leads to other servers."""
        self._keys.inherited = inherited

    @property
    def inherited_places(self) -> frozenset[tuple[str, int]]:
        """Where the other servers are to which inherited endpoints lead."""
        return self._keys.inherited.places

    @property
    def ready_keys(self) -> frozenset[ReadyKey]:
        """All readiness keys that were handed over and not taken back."""
        return self._keys.handed_over

    def release(self) -> None:
        """No inherited endpoint of another server is true any more."""
        self._keys.release()

    def stood_still(self) -> None:
        """This process stood still: the server may have been restarted meanwhile."""
        self._cut_off = True

    def notice(self, text: str) -> None:
        """Something to say of the instance that is no model's fault, such as a broken config file; empty: all well."""
        self._keys.notice(text)

    def report(self, source: str, conditions: Iterable[Condition]) -> None:
        """The troubles that `source` sees now, in place of those that it saw before."""
        self._keys.report(source, conditions)

    def removed(self, versions: Mapping[str, frozenset[int]]) -> None:
        """By model: what the server goes on loading though it is gone from its disk. It is announced no longer."""
        self._keys.unannounce(versions)

    def distrust(self, why: str) -> None:
        """Somebody else finds the server unwell, as `why` says: it is a last resort until this is empty again."""
        self._keys.distrust(why)

    def status(self, name: str, versions: tuple[VersionStatus, ...], now: float) -> None:
        """The server answered GetModelStatus; no versions: it does not know the model."""
        self._reached(now)
        model = self._models.get(name)
        if model is None:
            return
        model.failures = 0
        if model.shows_several(versions, now):
            self._keys.touch(name)
        if versions == model.answer:
            return
        model.answer = versions
        listed = {status.version: status for status in versions}
        # One that modelplane manages may not have been asked for yet; its conditions say what is wrong.
        model.trouble = "" if listed or model.watched.managed else "the server knows no version of it"
        for version in model.versions.keys() - listed.keys():
            self._say(name, version, "gone from the server's list")
            self._reproofs.forget((name, version, model.versions.pop(version).incarnation))
        for status in listed.values():
            self._observe(model, status, now)
        self._keys.touch(name)
        self._forget_if_gone(name, model)

    def answered(self, now: float) -> None:
        """The server answered something: an empty list of models is polled with a call whose answer says nothing."""
        self._reached(now)

    def failed(self, name: str, failure: PollFailure, now: float) -> None:
        """A GetModelStatus got no answer. Changes nothing while draining: there the keys have to stay until the
        control planes have seen them."""
        if self.draining:
            return
        self._failures += 1
        self._cut_off |= failure.connection
        if self._failures == 1:
            self._failing_since = now
        enough = 1.5 * self._timing.poll_interval if failure.connection else self._timing.slow_for
        if self._failures >= FAILURES and now - self._failing_since >= enough:
            if self._keys.state is not InstanceState.UNREACHABLE:
                self._lose(failure.detail)
        elif not failure.connection and name in self._models:
            self._model_failed(self._models[name], failure.detail)

    def probed(self, probe: Probe, outcome: Outcome, now: float) -> None:
        """A probe ended. One of an earlier load, or of a version that has gone meanwhile, changes nothing."""
        self.probes[outcome.proof] += 1
        model = self._models.get(probe.model.name)
        version = model.versions.get(probe.version) if model else None
        if model is None or version is None or version.incarnation != probe.incarnation:
            return
        if version.state is not ServableState.AVAILABLE or self.draining:
            return
        course = version.course
        before = (course.standing, course.proof, course.detail)
        self._reproofs.ended((probe.model.name, probe.version, probe.incarnation), course, outcome, now)
        if (course.standing, course.proof, course.detail) != before:
            self._keys.touch(probe.model.name)
            self._say(probe.model.name, probe.version, *told_proof(before[0], course))
        self._look_for_hang()

    def ended(self, reason: str) -> None:
        """The server's process is known to have ended: no waiting for failed calls."""
        self._patient = False
        self._lose(reason)

    def left(self) -> None:
        """Its drain is over and nothing is to be asked of it any more. Its keys go while the instance's own stays, for
        together they would seem to have been lost with the lease."""
        for model in self._models.values():
            model.versions.clear()
        self._keys.touch_all()

    def drain(self) -> bool:
        """No new requests from now on: every READY key becomes DRAINING, the rest goes. False: nothing was READY."""
        self._keys.draining = True
        self._keys.stands(InstanceState.DRAINING)
        self._keys.touch_all()
        for model in self._models.values():
            for version in model.versions.values():
                # It bridges a swap that this monitor won't see the end of, and Envoy sends to it all the same.
                version.kept = bridges_a_swap(model, version)
        versions = chain.from_iterable(model.versions.values() for model in self._models.values())
        undrained = self._wished.undrained() | self._wished.retiring()
        return any(version.ready and not version.drained for version in versions) or bool(undrained)

    def wish(self, wish: DrainRecord | None) -> None:
        """An operator wants this drained and kept so; None: nothing any longer."""
        self._wished.want(wish)
        self._keys.touch_all()
        self.report("drain", self._wished.conditions())

    def undrained(self) -> frozenset[ReadyKey]:
        """What was handed over as DRAINING since an operator wants it so; `drained` ends that."""
        return self._wished.undrained()

    def retire(self, versions: frozenset[tuple[str, int]]) -> None:
        """These, by model and number, take no new requests from now on, to be unloaded, and no others."""
        if changed := self._wished.retire(versions):
            self._keys.touch(*changed)

    def retiring(self) -> frozenset[ReadyKey]:
        """What was handed over as DRAINING since it is to be unloaded; `drained` ends that."""
        return self._wished.retiring()

    def held(self, name: str) -> Mapping[int, HeldVersion] | None:
        """What the server holds of a model; None: it has not said so, or can't be asked."""
        return held_versions(self._models.get(name))

    def drained(self, keys: Iterable[ReadyKey]) -> None:
        """Nothing is in flight there."""
        self._keys.touch(*self._wished.drained(keys))

    def states(self) -> Counter[str]:
        """How many versions there are by state: READY, FAILING, DRAINING, or what the server says. From any thread."""
        found: Counter[str] = Counter()
        for model in list(self._models.values()):
            for version in list(model.versions.values()):
                if version.ready:
                    found["DRAINING" if self.draining else version.course.standing.value] += 1
                elif version.state is not ServableState.END:
                    found[version.state.value] += 1
        return found

    def conditions(self) -> Counter[str]:
        """How many there are of each name. From any thread."""
        return self._keys.conditions()

    # --- decisions ----------------------------------------------------------------------------------------------

    def due(self, now: float) -> tuple[Probe, ...]:
        """The probes to start now; each is given out once and answered by `probed`."""
        if self.draining:
            return ()
        return tuple(
            Probe(
                self._models[name].watched,
                number,
                incarnation,
                course.question,
                course.patience(self._timing.reproof) if course.question else None,
            )
            for name, number, incarnation in self._reproofs.begin(self._courses(), now)
            for course in [self._models[name].versions[number].course]
        )

    def next_due(self) -> float | None:
        """When `due` next has something; None: not before the next observation."""
        return None if self.draining else self._reproofs.next_time(self._courses())

    def changes(self) -> Mapping[Key, ReadyRecord | InstanceRecord | None]:
        """What has changed since the last call, for one transaction; None: the key goes. All of it together is what
        the instance's keys shall be."""
        self._look_for_hang()
        return self._keys.changes()

    # --- inside -------------------------------------------------------------------------------------------------

    def _observe(self, model: KnownModel, status: VersionStatus, now: float) -> None:
        name, number = model.watched.name, status.version
        known = model.versions.get(number)
        if known is not None and (known.state, known.error) == (status.state, status.error):
            return
        if known is None or _RANK[status.state] < _RANK[known.state]:
            self._incarnations += 1
            course = Course(warm_up=model.watched.warm_up_requests)
            known = model.versions[number] = KnownVersion(status.state, status.error, self._incarnations, course)
            entered = True
        else:
            entered = status.state is not known.state
            known.state, known.error = status.state, status.error
        if entered and status.state is ServableState.AVAILABLE:
            known.course.loaded(now)
        elif status.state is not ServableState.AVAILABLE:
            known.was_ready = known.was_ready or known.ready
            known.course.unloaded(forget=known.state is ServableState.END)
            self._reproofs.forget((name, number, known.incarnation))
        told = f"{status.state}: {status.error}" if status.error else str(status.state)
        self._say(name, number, told, logging.ERROR if status.error else logging.INFO)

    def _reached(self, now: float) -> None:
        if not self.draining and self._keys.state in (InstanceState.STARTING, InstanceState.UNREACHABLE):
            log.info("instance %s: the server answers", self.instance)
            self._keys.stands(InstanceState.SERVING)
        if self._cut_off:
            self.reconnects += 1
            self._keys.touch()
            for model in self._models.values():
                for version in model.versions.values():
                    version.course.connection_lost(now)
        self._failures, self._cut_off = 0, False

    def _model_failed(self, model: KnownModel, detail: str) -> None:
        model.failures += 1
        # While others answer it is this model, and what was known of it gets too old to stay registered.
        if model.failures >= FAILURES and self._failures < FAILURES:
            name = model.watched.name
            if model.versions:
                log.warning("model %s on %s: its status can't be read: %s", name, self.instance, detail)
            model.trouble = f"its status can't be read: {detail}"
            self._forget_versions(model)
            model.answer = None
            self._keys.touch(name)

    def _lose(self, reason: str) -> None:
        if self._patient and self._keys.state is InstanceState.STARTING:
            why = f"the server opens its port once the first version of every model is loaded ({reason})"
            self._keys.stands(InstanceState.STARTING, why)
        else:
            log.warning("instance %s: the server is unreachable: %s", self.instance, reason)
            self._keys.stands(InstanceState.UNREACHABLE, reason)
            self._keys.inherited.unreachable()
        for name, model in list(self._models.items()):
            self._forget_versions(model)
            model.answer, model.failures, model.trouble = None, 0, ""
            self._keys.touch(name)
            self._forget_if_gone(name, model)

    def _forget_versions(self, model: KnownModel) -> None:
        for number, version in model.versions.items():
            self._reproofs.forget((model.watched.name, number, version.incarnation))
        model.versions.clear()

    def _courses(self) -> Iterator[tuple[tuple[str, int, int], Course]]:
        for name, model in self._models.items():
            for number, version in model.versions.items():
                yield (name, number, version.incarnation), version.course

    def _look_for_hang(self) -> None:
        """Say once when the whole server stops answering, and once when that is over."""
        hung = self._reproofs.hung
        if bool(hung) is self._hung:
            return
        self._hung = bool(hung)
        self._keys.touch_all()
        if not hung:
            log.info("instance %s: the server answers Predict again", self.instance)
            self.report("proof", ())
            return
        condition = told_hang(hung)
        log.error("instance %s: %s", self.instance, condition.text)
        self.report("proof", (condition,))

    def _forget_if_gone(self, name: str, model: KnownModel) -> None:
        if model.listed or any(version.state is not ServableState.END for version in model.versions.values()):
            return
        self._keys.drop(model)
        del self._models[name]

    def _say(self, model: str, version: int, text: str, level: int = logging.INFO) -> None:
        log.log(level, "model %s version %d on %s: %s", model, version, self.instance, text)
