"""`modelplane rollout VERB MODEL`: each verb is a command in a module of its own, imported only when it runs."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

from modelplane.errors import OptionError

VERBS = {
    "status": ("rollout_status", "how far the model's rollout is, and why; --wait until it has ended"),
    "history": ("rollout_history", "the policies that a model had: when, by whom, what changed, why"),
    "undo": ("rollout_undo", "make an earlier policy of the model hold again"),
    "pause": ("rollout_pause", "let the model's rollouts stay where they are"),
    "resume": ("rollout_resume", "let them go on"),
}
"""By name: the module in modelplane.commands, which has `run(argv)` and `command_line()`; and a summary."""


def usage() -> str:
    """The text of `modelplane rollout --help`."""
    rows = "\n".join(f"  {verb:<10}{summary}" for verb, (_, summary) in VERBS.items())
    return (
        f"usage: modelplane rollout {'|'.join(VERBS)} MODEL [options]\n\n"
        f"How a model moves to what its policy wants, and how that policy changed.\n\n{rows}\n\n"
        "modelplane rollout VERB --help tells all about one of them.\n"
    )


def run(argv: Sequence[str]) -> int:
    """Run a verb."""
    verb, *rest = list(argv) or [""]
    if verb in ("-h", "--help"):
        sys.stdout.write(usage())
        return 0
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        said = f"no verb {verb!r}" if verb else "say what to do"
        raise OptionError(f"{said}; " + (f"did you mean {close[0]}?" if close else f"there are {', '.join(VERBS)}"))
    return int(importlib.import_module(f"modelplane.commands.{VERBS[verb][0]}").run(rest))
