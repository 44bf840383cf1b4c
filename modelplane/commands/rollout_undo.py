"""`modelplane rollout undo MODEL`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from modelplane.access import FleetConfig
from modelplane.commandline import CommandLine
from modelplane.commands.rollout_history import when
from modelplane.errors import UserError
from modelplane.logs import LogOptions
from modelplane.policies.changing import ChangeConfig, change_one, named_model
from modelplane.policies.store import Change, Held
from modelplane.table import clean
from registry.policy.stored import StoredPolicy, decode_stored
from registry.records import RecordError


@dataclass(frozen=True, slots=True)
class UndoConfig:
    """How far back."""

    to_generation: int | None = field(
        default=None, metadata={"metavar": "N", "help": "to this generation; else to the one before the present"}
    )


def command_line() -> CommandLine:
    """The flags."""
    return CommandLine(
        "rollout undo",
        [UndoConfig, ChangeConfig, FleetConfig, LogOptions],
        usage="MODEL [--to-generation N] [options]",
        arguments={"MODEL": "its name, as clients spell it"},
        description="Make an earlier policy of a model hold again, as a new generation; a deleted one comes back.\n"
        "Exit code 3 if somebody else changed the policy at this moment: look again before you undo that.",
        examples=("modelplane rollout undo digits", "modelplane rollout undo digits --to-generation 3"),
    )


def run(argv: Sequence[str]) -> int:
    """Go back."""
    settings = command_line().parse(argv)
    model = named_model(settings, "rollout undo MODEL")
    to = settings[UndoConfig].to_generation
    taken: list[tuple[int, StoredPolicy]] = []

    def decide(held: Held) -> Change:
        taken[:] = [_earlier(held, to)]
        ((generation, stored),) = taken
        return Change(stored.document, f"back to generation {generation}")

    # What was the policy before is another one once somebody else has changed it, so this is never tried again.
    change_one(settings, model, decide, retry=False)
    for generation, stored in taken:
        why = f": {stored.message}" if stored.message else ""
        who = f" by {stored.by}" if stored.by else ""
        sys.stdout.write(clean(f"as it was in generation {generation}, {when(stored.at)}{who}{why}") + "\n")
    return 0


def _earlier(held: Held, to: int | None) -> tuple[int, StoredPolicy]:
    if not held.history:
        raise UserError(f"model {held.model!r} has no earlier policy")
    generation = max(held.history) if to is None else to
    if generation not in held.history:
        kept = ", ".join(map(str, held.history))
        raise UserError(f"model {held.model!r} has no earlier policy of generation {generation}; kept are {kept}")
    try:
        stored = decode_stored(held.history[generation])
    except RecordError as error:
        raise UserError(f"generation {generation} of model {held.model!r} can't be read: {error}") from None
    return generation, stored
