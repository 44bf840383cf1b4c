"""`modelplane schema`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from modelplane.commandline import CommandLine
from registry.policy.schema import schema_text


def command_line() -> CommandLine:
    """The flags."""
    return CommandLine(
        "schema",
        [],
        description="Print the JSON schema of a policy, for editors that check and complete YAML by it. What\n"
        "fields say together is not in it: `modelplane apply --dry-run` checks all.",
        examples=("modelplane schema > model.schema.json",),
    )


def run(argv: Sequence[str]) -> int:
    """Print it."""
    command_line().parse(argv)
    sys.stdout.write(schema_text())
    return 0
