"""What a user of the monitor can get wrong; the message names the thing and the mend."""

from __future__ import annotations


class MonitorError(ValueError):
    """A monitor that can't start as it was asked to. The command line prints the message and ends with `exit_code`."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


SUPERSEDED = 4
"""Exit code of a monitor whose instance a newer one has claimed."""


class InstanceSupersededError(MonitorError):
    """A newer monitor has claimed the instance, so this one has stopped."""

    def __init__(self, instance: str, by: object) -> None:
        super().__init__(
            f"instance {instance}: superseded: {by} has claimed it; "
            "if both are meant to run give each an --instance of its own",
            exit_code=SUPERSEDED,
        )
