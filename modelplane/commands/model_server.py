"""`modelplane model-server`: TensorFlow Serving's own flags, handed on as they are."""

from __future__ import annotations

import os
from collections.abc import Sequence


def run(argv: Sequence[str]) -> int:
    """Serve until SIGTERM."""
    # TensorFlow reads this when it is first imported; its greeting is noise in a server's log.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from model_server.command import main

    return main(argv)
