"""`modelplane rollout resume MODEL`."""

from __future__ import annotations

from collections.abc import Sequence

from modelplane.access import FleetConfig
from modelplane.commandline import CommandLine
from modelplane.commands.rollout_pause import set_paused
from modelplane.logs import LogOptions
from modelplane.policies.changing import ChangeConfig


def command_line() -> CommandLine:
    """The flags."""
    return CommandLine(
        "rollout resume",
        [ChangeConfig, FleetConfig, LogOptions],
        usage="MODEL [options]",
        arguments={"MODEL": "its name, as clients spell it"},
        description="Let the paused rollouts of a model go on.",
        examples=("modelplane rollout resume digits",),
    )


def run(argv: Sequence[str]) -> int:
    """Let them go on."""
    return set_paused(command_line(), argv, paused=False)
