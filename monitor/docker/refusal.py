"""Why a container is not watched: each reason has a name, and a text that says what would mend it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """The names, as logs and docs/docker.md spell them."""

    NOT_ENABLED = "NotEnabled"
    DISABLED = "Disabled"
    NOT_RUNNING = "NotRunning"
    BAD_LABEL = "BadLabel"
    NO_MODELS = "NoModels"
    NO_ADDRESS = "NoAddress"
    NAME_TAKEN = "NameTaken"
    HAS_MONITOR = "HasMonitor"
    IS_MONITOR = "IsMonitor"


QUIET = frozenset({Reason.NOT_ENABLED, Reason.IS_MONITOR})
"""Every container that is none of ours has one of these: worth no line in the log."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One container's reason."""

    reason: Reason
    text: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.text}"


class Refused(Exception):  # noqa: N818 - it is an answer, not an error
    """Raised on the way to a target as soon as there is a reason against it."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.refusal = Refusal(reason, text)
