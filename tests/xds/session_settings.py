"""How long random sessions go on: briefly in CI, and for as long as one likes by hand."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings


def sessions(examples: int, *, steps: int = 40) -> settings:
    """So many sessions of so many steps; MODELPLANE_SESSIONS=50 in the environment makes it fifty times as many."""
    return settings(
        max_examples=examples * int(os.environ.get("MODELPLANE_SESSIONS", "1")),
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
