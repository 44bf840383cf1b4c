"""The fleet as lines of text. Pure; no line is wider than asked for, and none holds a control character."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from modelplane.fleet import Holding, Picture, State, Version
from registry.addresses import join_address
from registry.records import Condition, InstanceRecord, InstanceState

_NAMES_SHOWN = 4


def clean(text: str) -> str:
    """One line that moves no cursor, whatever a model's name or an error holds."""
    return "".join(character if character.isprintable() else " " for character in text)


def fit(line: str, width: int) -> str:
    """Cut a line that is too wide."""
    return line if len(line) <= width else line[: max(0, width - 1)] + "…"


def table(picture: Picture, width: int = 100, policies: Iterable[str] = ()) -> list[str]:
    """Models with their versions, instances, and the reasons of what isn't ready; `policies`: the models that have
    one, for those that no instance knows."""
    lines: list[str] = []
    if not picture.connected:
        lines += ["The registry (etcd) can't be reached; this is what was known last.", ""]
    versions = [
        (row.model, str(row.version), "yes" if row.served else "", describe(row.holdings)) for row in picture.versions
    ]
    known = {row.model for row in picture.versions}
    versions += [
        (model, "-", "", f"on no instance; see `modelplane why {shlex.quote(model)}`")
        for model in sorted(set(policies) - known)
    ]
    versions.sort(key=lambda row: row[0])
    lines += columns(("MODEL", "VERSION", "SERVED", "STATE"), versions) if versions else ["No models."]
    lines.append("")
    instances = [
        (
            name,
            record.state.lower(),
            join_address(record.address, record.grpc_port),
            rest_address(record.address, record.rest_port),
            _ready_count(picture, name),
        )
        for name, record in picture.instances.items()
    ]
    if instances:
        lines += columns(("INSTANCE", "STATE", "GRPC", "REST", "READY"), instances)
    else:
        lines.append("No instances.")
    if said := conditions(picture):
        lines += ["", "CONDITIONS", *said]
    reasons = list(_reasons(picture))
    if reasons:
        lines += ["", "NOT READY", *reasons]
    return [fit(clean(line), width) for line in lines]


def describe(holdings: Mapping[str, Holding]) -> str:
    """`ready on tfs-0, tfs-1; loading on tfs-2`."""
    groups: defaultdict[State, list[str]] = defaultdict(list)
    for instance, holding in holdings.items():
        groups[holding.state].append(instance)
    return "; ".join(f"{state} on {listed(groups[state])}" for state in State if state in groups)


def changes(before: Picture, after: Picture) -> list[str]:
    """What is different, one line each: for an output that can't be redrawn."""
    lines: list[str] = []
    if before.connected != after.connected and before.revision:
        lines.append("the registry (etcd) is back" if after.connected else "the registry (etcd) can't be reached")
    for name in sorted(before.instances.keys() | after.instances.keys()):
        old, new = before.instances.get(name), after.instances.get(name)
        if new is None:
            lines.append(f"{name}: gone from the registry")
        elif old is None or (old.state, old.detail) != (new.state, new.detail):
            lines.append(f"{name}: {new.state.lower()}" + (f": {new.detail}" if new.detail else ""))
        lines += _condition_changes(name, old, new)
    olds = {(row.model, row.version): row for row in before.versions}
    news = {(row.model, row.version): row for row in after.versions}
    for key in sorted(olds.keys() | news.keys()):
        lines += _version_changes(olds.get(key), news.get(key))
    return [clean(line) for line in lines]


def _condition_changes(name: str, old: InstanceRecord | None, new: InstanceRecord | None) -> Iterable[str]:
    before, after = old.conditions if old else (), new.conditions if new else ()
    yield from (f"{name}: {one.name}: {one.text}" for one in after if one not in before)
    yield from (f"{name}: no longer {one.name}: {one.text}" for one in before if new and one not in after)


def _version_changes(old: Version | None, new: Version | None) -> Iterable[str]:
    row = new or old
    if row is None:
        return
    before, after = old.holdings if old else {}, new.holdings if new else {}
    for instance in sorted(before.keys() | after.keys()):
        if before.get(instance) != after.get(instance):
            held = after.get(instance)
            said = "gone" if held is None else str(held.state) + (f": {held.reason}" if held.reason else "")
            yield f"{row.model} version {row.version} on {instance}: {said}"
    if new is not None and new.served and not (old is not None and old.served):
        yield f"{row.model}: requests that name no version get version {row.version}"


def conditions(picture: Picture, concerns: Callable[[str, Condition], bool] = lambda name, one: True) -> list[str]:
    """What `concerns`, given an instance and a condition of it, lets pass; one line for all that say the same."""
    same: defaultdict[str, list[str]] = defaultdict(list)
    for name, record in picture.instances.items():
        for condition in record.conditions:
            if concerns(name, condition):
                same[f"{condition.name}: {condition.text}"].append(name)
    return [f"{listed(names)}: {said}" for said, names in same.items()]


def _reasons(picture: Picture) -> Iterable[str]:
    for name, record in picture.instances.items():
        if record.detail:
            silent = "its server does not answer: " * (record.state is InstanceState.UNREACHABLE)
            yield f"{name}: {silent}{record.detail}"
    for row in picture.versions:
        same: defaultdict[str, list[str]] = defaultdict(list)
        for instance, holding in row.holdings.items():
            if holding.reason and holding.state is not State.READY:
                same[holding.reason].append(instance)
        for reason, instances in same.items():
            yield f"{row.model} version {row.version} on {listed(instances)}: {reason}"


def _ready_count(picture: Picture, instance: str) -> str:
    held = [row.holdings[instance] for row in picture.versions if instance in row.holdings]
    return f"{sum(one.state is State.READY for one in held)} of {len(held)}"


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:_NAMES_SHOWN])
    return shown if len(names) <= _NAMES_SHOWN else f"{shown} and {len(names) - _NAMES_SHOWN} more"


def rest_address(host: str, port: int) -> str:
    """HOST:PORT, or a dash for an instance without REST."""
    return join_address(host, port) if port else "-"


def columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Cells under their heads, each column as wide as its widest cell."""
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]
