"""Which configuration a server should be brought to next, on the way to the wanted one. Pure.

Invariant: a step never holds what would block the server's reload, or unload what serves, as far as that can be known:

- A NEW model blocks the reload until its newest version is AVAILABLE or has failed, for ever if there is none. One
  whose path or version is evidently missing is held back; one of which that can't be known comes last, in a call of its
  own, so that all others are in force before it.
- A new model is not seen while the base path of any configured one is missing. Then no new one is sent.
- A model that is dropped and added again before its END shows is held back until then.
- A label is sent only while its version is AVAILABLE; until it can move, its old version is kept.
- A changed base path is not taken for a version that is loaded already; that change is refused here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from monitor.disk import Look
from monitor.model_config import read_model
from monitor.pb import tfs_pb2 as tfs
from monitor.servables import Policy, VersionStatus
from registry.records import ServableState

Configs: TypeAlias = Mapping[str, tfs.ModelConfig]
Statuses: TypeAlias = tuple[VersionStatus, ...]
_START, _LOADING, _AVAILABLE, _UNLOADING, _END = ServableState


class Progress(StrEnum):
    """How far one model is."""

    DONE = "done"
    WAITING = "waiting"
    FAILED = "failed"
    """Nothing more will be tried until something else is wanted of it, or the server says something new."""


@dataclass(frozen=True, slots=True)
class Result:
    """Of one model; `name` and `text` say what it waits for, or why it failed."""

    progress: Progress
    name: str = ""
    text: str = ""


DONE = Result(Progress.DONE)


def waiting(name: str, text: str) -> Result:
    """It goes on by itself when that is over."""
    return Result(Progress.WAITING, name, text)


def failed(name: str, text: str) -> Result:
    """It does not go on."""
    return Result(Progress.FAILED, name, text)


@dataclass(frozen=True, slots=True)
class Server:
    """What is known of it. `in_force`: the configuration. `statuses`: of every model in question. `looks`: by base
    path, only where the disk is the server's. `refused`: what it would not take of a model, and its words.
    `unloading`: models that were dropped, or may be, and whose END has not been seen since. `pending`: new ones of a
    call that the server may still be busy with."""

    in_force: Configs
    statuses: Mapping[str, Statuses]
    looks: Mapping[str, Look] = field(default_factory=dict)
    refused: Mapping[str, tuple[bytes, str]] = field(default_factory=dict)
    unloading: frozenset[str] = frozenset()
    pending: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Step:
    """`configs` next; `held` says of models that are not in it as wanted what they wait for."""

    configs: Configs
    held: Mapping[str, Result]


def plan(wanted: Configs, server: Server, *, singly: bool = False) -> Step:
    """The next step. `singly`: at most one change, to find the one that the server refuses."""
    held: dict[str, Result] = {}
    kept: dict[str, tfs.ModelConfig] = {}
    good: dict[str, tfs.ModelConfig] = {}
    doubtful: dict[str, tfs.ModelConfig] = {}
    for name, want in wanted.items():
        # What it holds of a model that nobody here brought in can't be known; that it is as wanted is likely.
        have = server.in_force.get(name, want)
        why = _unfit(want, server)
        if not _is_new(name, server):
            if why is None:
                kept[name], why = _changed(want, have, server)
            else:
                kept[name] = _with_labels(have, have, server)
        elif why is None:
            why = _held_back(want, server)
            if why is None:
                bare = tfs.ModelConfig()
                bare.CopyFrom(want)
                bare.version_labels.clear()
                (good if _promising(want, server) else doubtful)[name] = bare
        if why is not None:
            held[name] = why
    if same(kept, server.in_force):
        kept |= _brought_in(good, doubtful, kept, server, held, singly=singly)
    elif singly:
        kept = _one_change(server.in_force, kept)
    return Step(kept, held)


def _brought_in(
    good: Configs, doubtful: Configs, kept: Configs, server: Server, held: dict[str, Result], *, singly: bool
) -> Configs:
    """The new models of this step, all else being in force."""
    frozen = [name for name, config in kept.items() if _look(config, server).there is False]
    if frozen:
        text = f"the base path of model {frozen[0]}, {kept[frozen[0]].base_path}, is missing, so no new model is seen"
        held.update(dict.fromkeys((*good, *doubtful), waiting("OtherModelsFrozen", text)))
        return {}
    if good:
        return good if not singly else dict([next(iter(good.items()))])
    return dict([next(iter(doubtful.items()))]) if doubtful else {}


def _one_change(before: Configs, after: Configs) -> dict[str, tfs.ModelConfig]:
    for name in before:
        if name not in after:
            return {other: config for other, config in before.items() if other != name}
    changed = next(name for name in after if name not in before or raw(after[name]) != raw(before[name]))
    return {**before, changed: after[changed]}


def _is_new(name: str, server: Server) -> bool:
    """Whether the server, asked for it, would wait for it: of a model that it has, it tells some state."""
    statuses = server.statuses.get(name, ())
    if name in server.in_force:
        return not (statuses or name in server.pending)
    return name in server.unloading or not any(one.state in (_START, _LOADING, _AVAILABLE) for one in statuses)


def _unfit(want: tfs.ModelConfig, server: Server) -> Result | None:
    """What would have the server refuse the whole request, all other models with it, or block."""
    if not want.name:
        return failed("InvalidConfig", "a model without a name")
    if not want.base_path.startswith("/") and "://" not in want.base_path:
        return failed("InvalidConfig", f"model {want.name}: its base path {want.base_path!r} is not absolute")
    if not want.model_platform and not want.model_type:
        return failed("InvalidConfig", f'model {want.name}: it has no model_platform; write "tensorflow"')
    if _policy(want).specific == frozenset():
        return failed("InvalidConfig", f"model {want.name}: it asks for no version; leave the model out instead")
    config, text = server.refused.get(want.name, (b"", ""))
    if text and config == raw(want):
        return failed("ReloadRefused", f"model {want.name}: {text}")
    return None


def _held_back(want: tfs.ModelConfig, server: Server) -> Result | None:
    """Why a new model can't be sent yet."""
    name = want.name
    live = [one for one in server.statuses.get(name, ()) if one.state is not _END]
    if live or name in server.unloading:
        what = f"version {live[0].version} is still {live[0].state}" if live else "it was dropped just now"
        return waiting("DroppedAndReadded", f"model {name}: {what}; it is added again when its END shows")
    return _not_there(want, server)


def _promising(want: tfs.ModelConfig, server: Server) -> bool:
    """Whether its newest version is there and holds a model: a broken one may be tried again for minutes."""
    look = _look(want, server)
    chosen = _policy(want).choose(look.versions)
    return bool(chosen) and max(chosen) not in look.empty


def _not_there(want: tfs.ModelConfig, server: Server) -> Result | None:
    look, policy = _look(want, server), _policy(want)
    if look.there is False:
        return waiting("BasePathMissing", f"model {want.name}: its base path {want.base_path} is not there")
    if look.there and not policy.choose(look.versions):
        asked = f"version {_numbers(policy.specific)}" if policy.specific else "a version"
        return waiting("NoVersions", f"model {want.name}: {asked} is not under {want.base_path}")
    return None


def _changed(want: tfs.ModelConfig, have: tfs.ModelConfig, server: Server) -> tuple[tfs.ModelConfig, Result | None]:
    """What an existing model is to have next. The server takes it at once, and acts on it at its next poll."""
    specific = want.model_version_policy.WhichOneof("policy_choice") == "specific"
    why = _not_there(want, server) if specific or want.base_path != have.base_path else None
    if why is None and want.base_path != have.base_path:
        why = _same_version(want, have, server)
    if why is not None:
        return _with_labels(have, have, server), why
    step = _with_labels(want, have, server)
    if specific:
        # An old version goes only when none of its labels is left on it.
        held = _available(want.name, server)
        keep = {version for version in step.version_labels.values() if version in held}
        missing = keep - set(step.model_version_policy.specific.versions)
        step.model_version_policy.specific.versions.extend(sorted(missing))
    return step, None


def _same_version(want: tfs.ModelConfig, have: tfs.ModelConfig, server: Server) -> Result | None:
    look, held = _look(want, server), _available(want.name, server)
    policy = _policy(want)
    next_ones = policy.choose(look.versions) if look.there else policy.specific
    same_ones = held if next_ones is None else held & next_ones
    if not same_ones:
        return None
    text = f"model {want.name}: version {_numbers(same_ones)} would be served on from {have.base_path}, and not from "
    text += f"{want.base_path}; put it there under another number, or drop the model first"
    return failed("SameVersionOtherPath", text)


def _with_labels(want: tfs.ModelConfig, have: tfs.ModelConfig, server: Server) -> tfs.ModelConfig:
    """A copy whose labels are all on AVAILABLE versions: as wanted where they can be, else where they were."""
    step, available = tfs.ModelConfig(), _available(want.name, server)
    step.CopyFrom(want)
    step.version_labels.clear()
    for label, version in want.version_labels.items():
        before = have.version_labels.get(label, -1)
        if version in available:
            step.version_labels[label] = version
        elif before in available:
            step.version_labels[label] = before
    return step


def judge(want: tfs.ModelConfig, server: Server) -> Result:
    """How far a model is whose wanted configuration was sent."""
    name, statuses = want.name, server.statuses.get(want.name, ())
    look, policy = _look(want, server), _policy(want)
    states = {one.version: one.state for one in statuses}
    known = look.versions if look.there else {one.version for one in statuses if one.error or one.state is not _END}
    chosen = policy.choose(known)
    for one in statuses:
        if one.version in chosen and one.state is _END and one.error:
            return failed("LoadFailed", f"model {name} version {one.version}: {one.error}")
    moving = [one for one in statuses if one.state in (_START, _LOADING, _UNLOADING)]
    if moving:
        return waiting(moving[0].state.capitalize(), f"model {name} version {moving[0].version} is {moving[0].state}")
    answering = {version for version, state in states.items() if state is _AVAILABLE}
    lacking = (policy.specific or chosen) - answering
    if lacking or not answering:
        return _not_there(want, server) or _lacks(name, policy, lacking, server, look)
    if answering - chosen and (look.there or policy.specific):
        return waiting("NotSeen", f"model {name}: version {_numbers(answering - chosen)} is still there")
    return DONE


def _lacks(name: str, policy: Policy, lacking: frozenset[int], server: Server, look: Look) -> Result:
    frozen = [other for other, config in server.in_force.items() if _look(config, server).there is False]
    if frozen:
        text = f"the base path of model {frozen[0]} is missing, so no new version is seen"
        return waiting("OtherModelsFrozen", f"model {name}: {text}")
    if look.there and policy.specific and not lacking & look.versions:
        return waiting("VersionMissing", f"model {name}: version {_numbers(lacking)} is not on the disk")
    which = f"version {_numbers(lacking)}" if lacking else "no version"
    return waiting("NotSeen", f"model {name}: {which} {'does not show' if lacking else 'shows'}")


def missing_labels(want: tfs.ModelConfig, in_force: tfs.ModelConfig) -> Result | None:
    """The labels that can't be given yet."""
    left = [one for one in sorted(want.version_labels.items()) if in_force.version_labels.get(one[0]) != one[1]]
    if not left:
        return None
    label, version = left[0]
    text = f"model {want.name}: the label {label} waits until version {version} is AVAILABLE"
    return waiting("LabelBeforeAvailable", text)


def same(one: Configs, other: Configs) -> bool:
    """Whether two configurations are equal; the order in the list means nothing."""
    return one.keys() == other.keys() and all(raw(one[name]) == raw(other[name]) for name in one)


def raw(config: tfs.ModelConfig) -> bytes:
    """Spelled so that equal ones are equal; the order of a `specific` policy's versions counts."""
    return config.SerializeToString(deterministic=True)


def newest(statuses: Statuses) -> VersionStatus | None:
    """Whose state the server's reload waits for."""
    return max(statuses, key=lambda one: one.version, default=None)


def _available(name: str, server: Server) -> frozenset[int]:
    return frozenset(one.version for one in server.statuses.get(name, ()) if one.state is _AVAILABLE)


def _policy(config: tfs.ModelConfig) -> Policy:
    return read_model(config).policy or Policy()


def _look(config: tfs.ModelConfig, server: Server) -> Look:
    return server.looks.get(config.base_path, Look())


def _numbers(numbers: Iterable[int]) -> str:
    return ", ".join(str(number) for number in sorted(numbers, reverse=True))
