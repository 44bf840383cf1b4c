"""`modelplane label MODEL LABEL=VERSION`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from modelplane.access import FleetConfig
from modelplane.commandline import CommandLine
from modelplane.errors import OptionError, UserError
from modelplane.logs import LogOptions
from modelplane.policies.changing import ChangeConfig, change_one, named_model
from modelplane.policies.store import Change, Held
from registry.policy.edit import with_labels

_USAGE = "label MODEL LABEL=VERSION|LABEL- ..."


def command_line() -> CommandLine:
    """The flags."""
    return CommandLine(
        "label",
        [ChangeConfig, FleetConfig, LogOptions],
        usage="MODEL LABEL=VERSION|LABEL- ... [options]",
        arguments={"MODEL": "its name, as clients spell it"},
        rest=("LABEL=VERSION|LABEL-", "give a version a label, or take the label away"),
        description="Change the labels of a model's policy; all others stay.",
        examples=("modelplane label digits canary=4", "modelplane label digits stable=4 canary-"),
    )


def run(argv: Sequence[str]) -> int:
    """Change them."""
    settings = command_line().parse(argv)
    model = named_model(settings, _USAGE)
    added, removed = _wishes(settings.rest)

    def decide(held: Held) -> Change:
        document = held.needed().document
        try:
            changed = with_labels(document, added, removed)
        except KeyError as error:
            labels = held.policy.labels if held.policy else {}
            known = f"it has {', '.join(labels)}" if labels else "it has none"
            raise UserError(f"model {model!r} has no label {error}; {known}") from None
        return Change(changed, f"labels {' '.join(settings.rest)}")

    change_one(settings, model, decide)
    return 0


def _wishes(words: Sequence[str]) -> tuple[Mapping[str, int], list[str]]:
    if not words:
        raise OptionError(f"say which labels: `modelplane {_USAGE}`")
    added: dict[str, int] = {}
    removed: list[str] = []
    for word in words:
        label, equals, version = word.rpartition("=")
        if not equals and word.endswith("-") and len(word) > 1:
            removed.append(word[:-1])
        elif equals and label and version.isascii() and version.isdigit() and len(version) < 20:
            added[label] = int(version)
        else:
            raise OptionError(f"{word!r}: write LABEL=VERSION, or LABEL- to take a label away")
    names = [*added, *removed]
    if len(set(names)) < len(words):
        raise OptionError("a label is there twice; each may be once")
    return added, removed
