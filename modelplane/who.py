"""Who sits at the keyboard."""

from __future__ import annotations

import getpass
import socket


def operator() -> str:
    """USER@HOST, as the registry keeps it of whoever changes something."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        # A container's user that has no name.
        name = "somebody"
    return f"{name}@{socket.gethostname()}"
