"""What the monitor's parts say to each other about models and their versions. Immutable values, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass

from registry.records import Proof, ServableState


@dataclass(frozen=True, slots=True)
class WatchedModel:
    """A model that the server is believed to hold.

    `base_path` is the folder of its version folders as the server names it, empty if unknown. `several_versions` says
    whether its version policy may hold several versions at once; None: the policy is unknown.
    """

    name: str
    base_path: str = ""
    several_versions: bool | None = None


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """One line of a GetModelStatus answer; `error` is `CODE: message`, empty for OK."""

    version: int
    state: ServableState
    error: str = ""


@dataclass(frozen=True, slots=True)
class Probe:
    """An order to see whether one version answers. `incarnation` tells one load of it from the next."""

    model: WatchedModel
    version: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a probe found: PROVED, TRUSTED or FAILED, and how or why."""

    proof: Proof
    detail: str = ""


@dataclass(frozen=True, slots=True)
class PollFailure:
    """A GetModelStatus that got no answer. `connection`: the server could not be reached at all (refused, reset)."""

    connection: bool
    detail: str
