"""What the monitor's parts say to each other about models and their versions. Immutable values, no behaviour."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from registry.records import Proof, ServableState


@dataclass(frozen=True, slots=True)
class Policy:
    """Which versions of a model are wanted (file_system_storage_path_source.proto): the `specific` ones as far as they
    are there, or the `latest` so many; 0: all of them."""

    latest: int = 1
    specific: frozenset[int] | None = None

    def choose(self, versions: Iterable[int]) -> frozenset[int]:
        """Those of `versions` that are wanted."""
        if self.specific is not None:
            return self.specific.intersection(versions)
        newest = sorted(set(versions), reverse=True)
        return frozenset(newest[: self.latest or None])

    @property
    def several(self) -> bool:
        """Whether it may hold several versions at once."""
        return self.latest != 1 if self.specific is None else len(self.specific) > 1


@dataclass(frozen=True, slots=True)
class WatchedModel:
    """A model that the server is believed to hold.

    `base_path` is the folder of its version folders as the server names it, empty if unknown. `several_versions` says
    whether its version policy may hold several versions at once; None: the policy is unknown. `labels`: each with its
    version, sorted. `warm_up_requests`: requests that have to succeed before it is READY; `managed`: modelplane
    has the server hold it.
    """

    name: str
    base_path: str = ""
    several_versions: bool | None = None
    policy: Policy | None = None
    labels: tuple[tuple[str, int], ...] = ()
    warm_up_requests: int = 0
    managed: bool = False


@dataclass(frozen=True, slots=True)
class HeldVersion:
    """One version on a server, as far as a monitor knows it. `answers`: it has an endpoint, or would have one if nobody
    wanted it drained; `drained`: it takes no new requests, and nothing is in flight on it."""

    state: ServableState
    error: str = ""
    answers: bool = False
    proof: Proof = Proof.PENDING
    detail: str = ""
    drained: bool = False


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """One line of a GetModelStatus answer; `error` is `CODE: message`, empty for OK."""

    version: int
    state: ServableState
    error: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """A request that a version took: it is asked again and again, to see that the version still does. `method` and
    `request` are a unary call's; `words` name it, as in "answered …"; `refused`: its answer was an error that tells
    that the values aren't valid, so that the same error is as good an answer again."""

    method: str
    request: bytes
    words: str
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Probe:
    """An order to see whether one version answers. `incarnation` tells one load of it from the next. With a `question`
    it has answered before, and this is asked again; `patience`: seconds to wait for an answer, None: the usual."""

    model: WatchedModel
    version: int
    incarnation: int
    question: Question | None = None
    patience: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a probe found: PROVED, TRUSTED or FAILED, and how or why; PENDING: it could not be asked again just now.

    `silent`: no answer came at all. `question`: what may be asked from now on; `seconds`: how long that took."""

    proof: Proof
    detail: str = ""
    silent: bool = False
    question: Question | None = field(default=None, compare=False)
    seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class PollFailure:
    """A GetModelStatus that got no answer. `connection`: the server could not be reached at all (refused, reset)."""

    connection: bool
    detail: str
