"""`modelplane rollout pause MODEL`, and what it shares with `resume`."""

from __future__ import annotations

from collections.abc import Sequence

from modelplane.access import FleetConfig
from modelplane.commandline import CommandLine
from modelplane.logs import LogOptions
from modelplane.policies.changing import ChangeConfig, change_one, named_model
from modelplane.policies.store import Change, Held
from registry.policy.edit import with_paused


def command_line() -> CommandLine:
    """The flags."""
    return CommandLine(
        "rollout pause",
        [ChangeConfig, FleetConfig, LogOptions],
        usage="MODEL [options]",
        arguments={"MODEL": "its name, as clients spell it"},
        description="Let the rollouts of a model stay where they are, also a canary at its present step, until\n"
        "`modelplane rollout resume`.",
        examples=("modelplane rollout pause digits --message 'looking at step 2'",),
    )


def run(argv: Sequence[str]) -> int:
    """Pause them."""
    return set_paused(command_line(), argv, paused=True)


def set_paused(line: CommandLine, argv: Sequence[str], *, paused: bool) -> int:
    """Write it into the policy."""
    settings = line.parse(argv)

    def decide(held: Held) -> Change:
        return Change(with_paused(held.needed().document, paused=paused), "paused" if paused else "resumed")

    change_one(settings, named_model(settings, f"{line.command} MODEL"), decide)
    return 0
