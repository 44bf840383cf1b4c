"""Brings a server from the configuration that it has to a wanted one, past the traps of HandleReloadConfigRequest.
Pure: observations and the time come in, calls and results come out; monitor/reloader.py is the shell.

Invariants: never more than one call is in flight. What an answer says is never the result: OK is said before anything
is loaded, and UNKNOWN of models that load. Results come from the statuses alone, seen after the answer.

A call whose deadline has passed is still carried out, once the server gets to it (it takes one reload at a time, in
turn). So such a call counts as outstanding until a later one is answered, or until all of its new models have got
somewhere since; meanwhile nothing is sent but, ever more seldom, what is wanted now, which waits behind it. After that
the newest configuration is sent once more, whatever is believed to be in force.

A server that was restarted is known by versions that are gone from its list, or that nobody asked for; it has its first
configuration again. After every loss of the connection the newest configuration is sent once more.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from monitor.disk import Look
from monitor.pb import tfs_pb2 as tfs
from monitor.reload_step import (
    Configs,
    Progress,
    Result,
    Server,
    Statuses,
    Step,
    judge,
    missing_labels,
    newest,
    plan,
    raw,
    same,
    waiting,
)
from monitor.told import Told
from registry.records import Condition, ServableState

_REFUSALS = ("INVALID_ARGUMENT", "FAILED_PRECONDITION")
_NOT_AVAILABLE = "did not become available"
"""server_core.cc says it of new models; the configuration is in force all the same."""
_PLAIN = ("NotSent", "NotSeen", "Start", "Loading", "Unloading")
"""Waits that are no trouble."""


@dataclass(frozen=True, slots=True)
class ReloadTiming:
    """Seconds. `deadline` of one call; `settle`: after it an existing model's change has been seen (a poll of its disk
    every second and a tick of 0.1 s); `unload`: from a drop to the END that it causes; `first`, `last`: pauses after
    calls without an answer."""

    deadline: float = 10.0
    settle: float = 1.5
    unload: float = 0.3
    first: float = 1.0
    last: float = 300.0


@dataclass(frozen=True, slots=True)
class Call:
    """One HandleReloadConfigRequest; answered by `Reload.answered`."""

    config: tfs.ModelServerConfig
    deadline: float


@dataclass(slots=True)
class _Sent:
    configs: Configs
    new: frozenset[str]
    changed: frozenset[str]
    at: float


@dataclass(slots=True)
class _Seen:
    statuses: Statuses
    at: float
    changed: float


@dataclass(slots=True)
class Reload:
    """One server. `present`: the configuration that it starts with."""

    told: Told
    present: Configs
    timing: ReloadTiming = field(default_factory=ReloadTiming)
    _wanted: Configs | None = None
    _in_force: Configs = field(init=False)
    _seen: dict[str, _Seen] = field(default_factory=dict)
    _looks: Mapping[str, Look] = field(default_factory=dict)
    _in_flight: _Sent | None = None
    _outstanding: list[_Sent] = field(default_factory=list)
    _sent: dict[str, float] = field(default_factory=dict)
    _dropped: dict[str, float] = field(default_factory=dict)
    _refused: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    _singly: bool = False
    _confirm: bool = True
    _answered_at: float = 0.0
    _unanswered: int = 0
    _not_before: float = 0.0
    _trouble: str = ""

    def __post_init__(self) -> None:
        self._in_force = dict(self.present)

    @property
    def names(self) -> frozenset[str]:
        """The models whose status it has to know."""
        dropped = {name for name, seen in self._seen.items() if _live(seen.statuses)}
        return frozenset({*self.present, *self._in_force, *(self._wanted or ()), *dropped, *self._dropped})

    # --- observations -------------------------------------------------------------------------------------------

    def want(self, config: tfs.ModelServerConfig) -> None:
        """What the server shall have, from now on. Raises ValueError for a model that is named twice."""
        wanted = {model.name: model for model in config.model_config_list.config}
        if len(wanted) < len(config.model_config_list.config):
            raise ValueError("a model is listed twice: each may stand in the list once")
        self._wanted, self._singly, self._refused = wanted, False, {}

    def status(self, name: str, statuses: Statuses, asked_at: float) -> None:
        """An answer to GetModelStatus; none: the server doesn't know the model. `asked_at`: when it was asked."""
        before = self._seen.get(name)
        gone = before is not None and {one.version for one in before.statuses} - {one.version for one in statuses}
        if gone or (before is not None and not _live(before.statuses) and _live(statuses) and self._foreign(name)):
            self._restarted()
            before = None
        if before is None or before.statuses != statuses:
            self._seen[name] = before = _Seen(statuses, asked_at, asked_at)
            self._refused.pop(name, None)
        before.at = asked_at
        if name in self._dropped and self._unload_seen(name):
            del self._dropped[name]

    def lost(self) -> None:
        """The server could not be reached: it may have been restarted, which need not show in its statuses."""
        self._confirm = True

    def disk(self, looks: Mapping[str, Look]) -> None:
        """What the server's disk shows, by base path; empty where that can't be known."""
        self._looks = looks

    def answered(self, code: str, text: str, now: float) -> None:
        """The call in flight ended: with "OK", or with a gRPC status's name; anything but TF Serving's own answers is
        none."""
        sent, self._in_flight = self._in_flight, None
        assert sent is not None, "no call is in flight"
        self._answered_at = now
        # gRPC itself says UNKNOWN of some connections that broke.
        loaded = code == "OK" or (code == "UNKNOWN" and _NOT_AVAILABLE in text)
        if not loaded and code not in _REFUSALS:
            self._outstanding.append(sent)
            self._trouble = f"{code}: {text}"
            self._back_off(now)
            return
        # One at a time, and in turn: whatever was asked for before has been carried out.
        self._confirm = bool(self._outstanding)
        self._clear_outstanding(now)
        self._trouble = ""
        if not loaded:
            self._was_refused(sent, f"{code}: {text}", now)
        else:
            self._unanswered, self._not_before = 0, now
            self._take(sent.configs, now)

    # --- decisions ----------------------------------------------------------------------------------------------

    def next_call(self, now: float) -> Call | None:
        """The call to make now, if any. Each is answered by `answered` before there is another."""
        if self._wanted is None or self._in_flight is not None or not self._known():
            return None
        if self._outstanding and all(map(self._carried_out, self._outstanding)):
            self._clear_outstanding(now)
            self._confirm, self._unanswered, self._not_before = True, 0, now
        if now < self._not_before:
            return None
        server, wanted = self._server(), self._wanted
        configs = plan(wanted, server, singly=self._singly).configs
        if same(configs, server.in_force) and not self._confirm and not self._outstanding:
            self._singly = False
            return None
        changed = {name for name in configs if name not in server.in_force or _differs(name, configs, server.in_force)}
        new = frozenset(configs.keys() - server.in_force.keys()) | (server.pending & configs.keys())
        self._in_flight = _Sent(configs, new, frozenset(changed | (server.in_force.keys() - configs.keys())), now)
        config = tfs.ModelServerConfig()
        config.model_config_list.config.extend(configs[name] for name in sorted(configs))
        return Call(config, self.timing.deadline)

    def results(self, now: float) -> dict[str, Result]:
        """How far each wanted model is, and each that is on its way out."""
        if self._wanted is None:
            return {}
        server, wanted = self._server(), self._wanted
        step = plan(wanted, server)
        found = {name: self._result(name, wanted[name], server, step, now) for name in wanted}
        for name, seen in self._seen.items():
            live = _live(seen.statuses)
            if name not in wanted and live:
                found[name] = waiting("Unloading", f"model {name} version {live} is still there")
        return found

    def settled(self, now: float) -> bool:
        """Whether the server has all that it can have."""
        waits = any(one.progress is Progress.WAITING for one in self.results(now).values())
        return self._in_flight is None and not self._outstanding and not self._confirm and not waits

    def certain(self) -> Mapping[str, frozenset[int]]:
        """By model, the versions that it is told of by name in every configuration that may be in force now."""
        first, *others = self._possibly_in_force()
        return {
            name: frozenset.intersection(has, *(one.get(name, has - has) for one in others))
            for name, has in first.items()
        }

    def possible(self) -> Mapping[str, frozenset[int]]:
        """The same for any configuration that may be in force, or get so."""
        found: dict[str, frozenset[int]] = {}
        for configs in self._possibly_in_force():
            for name, versions in configs.items():
                found[name] = found.get(name, versions) | versions
        return found

    def _possibly_in_force(self) -> list[Mapping[str, frozenset[int]]]:
        sent = [*self._outstanding, *([self._in_flight] if self._in_flight else [])]
        return [
            {name: frozenset(one.model_version_policy.specific.versions) for name, one in configs.items()}
            for configs in (self._in_force, *(one.configs for one in sent))
        ]

    def conditions(self, now: float, but: Collection[str] = ()) -> tuple[Condition, ...]:
        """The troubles by name, each told once in the log when it begins and when it ends; `but` those of these
        names, which somebody else tells."""
        found = {}
        for name, result in self.results(now).items():
            if result.name and result.name not in (*_PLAIN, *but):
                found[result.name, name, ""] = Condition(result.name, result.text, name)
        for culprit, text in self._blockers().items():
            found["ReloadBlocked", culprit, ""] = Condition("ReloadBlocked", text, culprit)
        return self.told.update(found)

    # --- inside -------------------------------------------------------------------------------------------------

    def _server(self) -> Server:
        base, dropping = self._in_force, set(self._dropped)
        for sent in self._outstanding:
            dropping |= base.keys() - sent.configs.keys()
            base = sent.configs
        return Server(
            base,
            {name: seen.statuses for name, seen in self._seen.items()},
            self._looks,
            self._refused,
            frozenset(dropping),
            frozenset(name for sent in self._outstanding for name in sent.new),
        )

    def _foreign(self, name: str) -> bool:
        """Whether nobody here has asked for a model: it came with a restart, or somebody else's reload."""
        sent = [*self._outstanding, *([self._in_flight] if self._in_flight else [])]
        return name not in self._in_force and not any(name in one.configs for one in sent)

    def _unload_seen(self, name: str) -> bool:
        seen, dropped = self._seen[name], self._dropped[name]
        states = {one.state for one in seen.statuses} - {ServableState.END}
        # One that was let go before its load began is forgotten without an END, and stays listed as START.
        wait = self.timing.settle if states else self.timing.unload
        return seen.at >= dropped + wait and states <= {ServableState.START}

    def _known(self) -> bool:
        """Whether all statuses were asked for after the last answer: it changed what they mean."""
        return all(name in self._seen and self._seen[name].at >= self._answered_at for name in self.names)

    def _carried_out(self, sent: _Sent) -> bool:
        """Whether a call without an answer has evidently been carried out; one without new models shows nothing."""
        if not sent.new and not any(other.new for other in self._outstanding):
            return False
        return all(self._decided(name, sent.at) for name in sent.new)

    def _decided(self, name: str, since: float) -> bool:
        seen = self._seen.get(name)
        latest = newest(seen.statuses) if seen else None
        if seen is None or latest is None or seen.changed < since:
            return False
        return latest.state in (ServableState.AVAILABLE, ServableState.END)

    def _clear_outstanding(self, now: float) -> None:
        for sent in self._outstanding:
            self._take(sent.configs, now)
        self._outstanding.clear()

    def _take(self, configs: Configs, now: float) -> None:
        """This is in force now."""
        for name in self._in_force.keys() - configs.keys():
            self._dropped[name] = now
        for name in configs:
            self._dropped.pop(name, None)
            if _differs(name, configs, self._in_force):
                self._sent[name] = now
        self._in_force = dict(configs)

    def _was_refused(self, sent: _Sent, text: str, now: float) -> None:
        if len(sent.changed) > 1:
            self._singly = True
            return
        for name in sent.changed & (self._wanted or {}).keys():
            self._refused[name] = raw((self._wanted or {})[name]), text
        if not sent.changed:
            self._trouble, self._confirm = text, True
            self._back_off(now)

    def _back_off(self, now: float) -> None:
        self._not_before = now + min(self.timing.first * 2.0**self._unanswered, self.timing.last)
        self._unanswered = min(self._unanswered + 1, 30)

    def _restarted(self) -> None:
        """Its memory is gone, and with it all that was asked for."""
        self._in_force, self._confirm = dict(self.present), True
        self._seen.clear()
        self._outstanding.clear()
        self._dropped.clear()
        self._unanswered, self._not_before = 0, 0.0

    def _result(self, name: str, want: tfs.ModelConfig, server: Server, step: Step, now: float) -> Result:
        if name in step.held:
            return step.held[name]
        blockers = self._blockers()
        behind = name not in self._in_force or _differs(name, step.configs, self._in_force)
        if blockers and name not in blockers and behind:
            culprit = next(iter(blockers))
            what = f"the reload of model {culprit}" if culprit else "another reload"
            return waiting("ReloadQueued", f"model {name} waits behind {what}, which the server has not ended")
        have = server.in_force.get(name)
        if have is None:
            return waiting("NotSent", f"model {name} has not been sent yet")
        why = judge(want, server)
        if name in blockers and why.name not in ("Start", "Loading"):
            return waiting("ReloadBlocked", blockers[name])
        if why.progress is not Progress.DONE:
            return why
        if raw(have) != raw(want):
            return missing_labels(want, have) or waiting("NotSent", f"model {name}: its change has not been sent yet")
        if now < self._sent.get(name, -1e9) + self.timing.settle and not _looked_at(want, server):
            return waiting("NotSeen", f"model {name}: the server may not have looked at its disk yet")
        return why

    def _blockers(self) -> dict[str, str]:
        """The models that calls without an answer seem to wait for; "" if it is none of them."""
        if not self._outstanding:
            return {}
        found = {}
        for sent in self._outstanding:
            for name in sorted(sent.new):
                if not self._decided(name, sent.at):
                    found[name] = self._why_blocked(name, sent)
        text = f"the server does not answer a reload ({self._trouble}); it may be busy with one of somebody else"
        return found or {"": text}

    def _why_blocked(self, name: str, sent: _Sent) -> str:
        seen = self._seen.get(name)
        latest = newest(seen.statuses) if seen else None
        begins = f"the server's reload waits for model {name}, and every later one behind it: "
        if latest is not None and latest.state in (ServableState.START, ServableState.LOADING):
            return f"{begins}version {latest.version} is {latest.state}, which is slow, or fails and is tried again"
        return f"{begins}no version of it shows; create one under {sent.configs[name].base_path}, or restart the server"


def _live(statuses: Statuses) -> int:
    """A version that has not ended; 0: none. A version 0 is as good as 1 here."""
    return next((one.version or 1 for one in statuses if one.state is not ServableState.END), 0)


def _differs(name: str, configs: Configs, others: Configs) -> bool:
    return name in configs and (name not in others or raw(configs[name]) != raw(others[name]))


def _looked_at(want: tfs.ModelConfig, server: Server) -> bool:
    look = server.looks.get(want.base_path)
    return look is not None and bool(look.there)
