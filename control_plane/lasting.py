"""Python's search for garbage in cycles, kept away from what stays.

Invariant: the search is as it was afterwards, but for what was made meanwhile, which it never looks at again.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lasting_objects() -> Iterator[None]:
    """For a step that makes a great many objects that stay, such as taking in a whole registry.

    Looking through them again and again while they grow takes a third of a cold start, and once more later would hold
    up every stream for tenths of a second. They still go when nothing refers to them; only cycles among them would not.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
