"""How random tests choose their examples: the same ones in every run, so that a change is judged by what the one before
was judged by. With MODELPLANE_SESSIONS=20 in the environment they take twenty times as many, and new ones every
time (README.md, "Run the tests")."""

from __future__ import annotations

import os

from hypothesis import settings

_TIMES = os.environ.get("MODELPLANE_SESSIONS", "")


def examples(usual: int) -> int:
    """How many a test takes that takes `usual` many in CI."""
    return usual * int(_TIMES or "1")


def load_profile() -> None:
    """What holds for all random tests; to be called before any of them is imported."""
    # No deadline: how long an example takes says how busy the computer is.
    settings.register_profile("same", derandomize=True, database=None, deadline=None, max_examples=examples(100))
    settings.register_profile("search", derandomize=False, deadline=None, max_examples=examples(100), print_blob=True)
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("search" if _TIMES else "same"))
