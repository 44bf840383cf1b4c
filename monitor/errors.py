"""What a user of the monitor can get wrong; the message names the thing and the mend."""

from __future__ import annotations


class MonitorError(ValueError):
    """A monitor that can't start as it was asked to. The command line prints the message and ends with `exit_code`."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code
