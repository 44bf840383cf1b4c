"""`modelplane delete model NAME`."""

from __future__ import annotations

from collections.abc import Sequence

from modelplane.access import FleetConfig
from modelplane.commandline import CommandLine
from modelplane.errors import OptionError, UserError
from modelplane.logs import LogOptions
from modelplane.policies.changing import ChangeConfig, change_one, named_model
from modelplane.policies.store import Change, Held


def command_line() -> CommandLine:
    """The flags."""
    return CommandLine(
        "delete",
        [ChangeConfig, FleetConfig, LogOptions],
        usage="model MODEL [options]",
        arguments={"model": "a model's policy", "MODEL": "its name, as clients spell it"},
        description="Delete a model's policy. What modelplane has loaded by it is unloaded; what servers hold by\n"
        "their own configuration stays. The history is kept: `modelplane rollout undo MODEL` takes it back.\n"
        "Exit code 1 if there is no such policy, 3 if --if-generation did not hold.",
        examples=("modelplane delete model digits --message 'nobody asks for it'",),
    )


def run(argv: Sequence[str]) -> int:
    """Delete it."""
    settings = command_line().parse(argv)
    kind = settings.arguments.get("model", "")
    if kind != "model":
        said = f"{kind!r} can't be deleted" if kind else "say what"
        raise OptionError(f"{said}: `modelplane delete model MODEL`")
    change_one(settings, named_model(settings, "delete model MODEL"), _delete)
    return 0


def _delete(held: Held) -> Change:
    if held.raw is None:
        raise UserError(f"there is no policy of model {held.model!r}")
    return Change(None, "by `delete`")
