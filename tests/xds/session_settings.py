"""How many random sessions there are: few in CI, and as many as one likes by hand."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from tests.support.examples import examples


def sessions(number: int, *, steps: int = 40) -> settings:
    """So many sessions of so many steps; how MODELPLANE_SESSIONS changes that, tests/support/examples.py says."""
    return settings(
        max_examples=examples(number),
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
