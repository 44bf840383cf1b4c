"""The registry's keys. Invariant: `parse_key(make(x)) == x` for every name, whatever characters it holds.

Names are percent-encoded with nothing but RFC 3986's unreserved characters left as they are, so that a slash in a
model's name can't forge another key and `etcdctl get --prefix` still reads well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import quote, unquote

DEFAULT_PREFIX = "/modelplane/"
_LARGEST_VERSION = 2**63 - 1
_VERSION_DIGITS = len(str(_LARGEST_VERSION))


@dataclass(frozen=True, slots=True)
class InstanceKey:
    """`instances/<instance>`: one TF Serving process."""

    instance: str


@dataclass(frozen=True, slots=True)
class LoadKey:
    """`instances/<instance>/load`: how busy it is."""

    instance: str


@dataclass(frozen=True, slots=True)
class DiskKey:
    """`instances/<instance>/disk`: which versions lie under the base paths that policies name."""

    instance: str


@dataclass(frozen=True, slots=True)
class ReadyKey:
    """`ready/<model>/<version>/<instance>`: one version of one model on one instance."""

    model: str
    version: int
    instance: str


@dataclass(frozen=True, slots=True)
class PolicyKey:
    """`models/<model>`: what the operator wants for one model."""

    model: str


@dataclass(frozen=True, slots=True)
class HistoryKey:
    """`history/<model>/<generation>`: a policy that was replaced or deleted since."""

    model: str
    generation: int


@dataclass(frozen=True, slots=True)
class AssignmentKey:
    """`assignments/<instance>`: what a managed instance shall hold."""

    instance: str


@dataclass(frozen=True, slots=True)
class TrafficKey:
    """`traffic/<model>`: which versions answer, as resolved from the policy."""

    model: str


@dataclass(frozen=True, slots=True)
class RolloutKey:
    """`rollouts/<model>`: how far the move from one version to the next has come."""

    model: str


@dataclass(frozen=True, slots=True)
class EventKey:
    """`events/<id>`: something that happened; ids sort by time (registry/events.py)."""

    id: str


@dataclass(frozen=True, slots=True)
class LeaderKey:
    """`leader`: which of the control planes decides."""


@dataclass(frozen=True, slots=True)
class PlaneKey:
    """`planes/<replica>`: one control-plane replica."""

    replica: str


@dataclass(frozen=True, slots=True)
class NodesKey:
    """`planes/<replica>/nodes`: the Envoys that one control-plane replica answers for."""

    replica: str


@dataclass(frozen=True, slots=True)
class SuspectsKey:
    """`planes/<replica>/suspects`: what one control-plane replica goes on with although its leases are lost."""

    replica: str


@dataclass(frozen=True, slots=True)
class PlaneTrafficKey:
    """`planes/<replica>/traffic`: what the Envoys of one control-plane replica say of their requests."""

    replica: str


@dataclass(frozen=True, slots=True)
class DrainKey:
    """`drains/<instance>`: what an operator wants drained of one instance."""

    instance: str


@dataclass(frozen=True, slots=True)
class ClaimKey:
    """`claims/<instance>`: which monitor may write the keys of one instance."""

    instance: str


OfInstance: TypeAlias = InstanceKey | LoadKey | DiskKey | DrainKey | ClaimKey | AssignmentKey
OfModel: TypeAlias = ReadyKey | PolicyKey | HistoryKey | TrafficKey | RolloutKey
OfPlane: TypeAlias = PlaneKey | NodesKey | SuspectsKey | PlaneTrafficKey
Key: TypeAlias = OfInstance | OfModel | OfPlane | EventKey | LeaderKey


def encode_name(name: str) -> str:
    """Percent-encode a name for one segment of a key; one of dots alone too, so that no segment is `.` or `..`."""
    encoded = quote(name, safe="")
    return encoded.replace(".", "%2E") if set(encoded) == {"."} else encoded


def _is_text(raw: str) -> bool:
    """Whether it is text at all: etcd takes any bytes, and what is no UTF-8 can't be told to anybody."""
    try:
        raw.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_version(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _VERSION_DIGITS and int(text) <= _LARGEST_VERSION


_NAMED: Mapping[str, Callable[[str], Key]] = {
    "instances": InstanceKey,
    "planes": PlaneKey,
    "drains": DrainKey,
    "claims": ClaimKey,
    "assignments": AssignmentKey,
    "traffic": TrafficKey,
    "rollouts": RolloutKey,
    "events": EventKey,
}
_PARTS: Mapping[tuple[str, str], Callable[[str], Key]] = {
    ("instances", "load"): LoadKey,
    ("instances", "disk"): DiskKey,
    ("planes", "nodes"): NodesKey,
    ("planes", "suspects"): SuspectsKey,
    ("planes", "traffic"): PlaneTrafficKey,
}


@dataclass(frozen=True, slots=True)
class Keyspace:
    """All keys of one fleet, under one prefix that ends with a slash."""

    prefix: str = DEFAULT_PREFIX

    def __post_init__(self) -> None:
        if not self.prefix.endswith("/"):
            object.__setattr__(self, "prefix", self.prefix + "/")

    @property
    def instances(self) -> str:
        """The prefix of all instance keys."""
        return f"{self.prefix}instances/"

    @property
    def ready(self) -> str:
        """The prefix of all readiness keys."""
        return f"{self.prefix}ready/"

    @property
    def models(self) -> str:
        """The prefix of all policies."""
        return f"{self.prefix}models/"

    @property
    def planes(self) -> str:
        """The prefix of all control-plane replicas."""
        return f"{self.prefix}planes/"

    @property
    def drains(self) -> str:
        """The prefix of what operators want drained."""
        return f"{self.prefix}drains/"

    @property
    def claims(self) -> str:
        """The prefix of the monitors' claims."""
        return f"{self.prefix}claims/"

    @property
    def history(self) -> str:
        """The prefix of the policies that were replaced."""
        return f"{self.prefix}history/"

    @property
    def assignments(self) -> str:
        """The prefix of what managed instances shall hold."""
        return f"{self.prefix}assignments/"

    @property
    def traffic(self) -> str:
        """The prefix of the resolved traffic of models."""
        return f"{self.prefix}traffic/"

    @property
    def rollouts(self) -> str:
        """The prefix of the rollouts."""
        return f"{self.prefix}rollouts/"

    @property
    def events(self) -> str:
        """The prefix of the events."""
        return f"{self.prefix}events/"

    def make(self, key: Key) -> str:
        """Spell a key out, prefix included."""
        match key:
            case LeaderKey():
                return f"{self.prefix}leader"
            case EventKey(one):
                return self.events + encode_name(one)
            case PlaneKey() | NodesKey() | SuspectsKey() | PlaneTrafficKey():
                return self._of_plane(key)
            case ReadyKey() | PolicyKey() | HistoryKey() | TrafficKey() | RolloutKey():
                return self._of_model(key)
            case _:
                return self._of_instance(key)

    def _of_instance(self, key: OfInstance) -> str:
        match key:
            case InstanceKey(instance):
                return self.instances + encode_name(instance)
            case LoadKey(instance):
                return f"{self.instances}{encode_name(instance)}/load"
            case DiskKey(instance):
                return f"{self.instances}{encode_name(instance)}/disk"
            case DrainKey(instance):
                return self.drains + encode_name(instance)
            case ClaimKey(instance):
                return self.claims + encode_name(instance)
            case AssignmentKey(instance):
                return self.assignments + encode_name(instance)

    def _of_model(self, key: OfModel) -> str:
        match key:
            case ReadyKey(model, version, instance):
                return f"{self.ready}{encode_name(model)}/{version}/{encode_name(instance)}"
            case PolicyKey(model):
                return self.models + encode_name(model)
            case HistoryKey(model, generation):
                return f"{self.history}{encode_name(model)}/{generation}"
            case TrafficKey(model):
                return self.traffic + encode_name(model)
            case RolloutKey(model):
                return self.rollouts + encode_name(model)

    def _of_plane(self, key: OfPlane) -> str:
        match key:
            case PlaneKey(replica):
                return self.planes + encode_name(replica)
            case NodesKey(replica):
                return f"{self.planes}{encode_name(replica)}/nodes"
            case SuspectsKey(replica):
                return f"{self.planes}{encode_name(replica)}/suspects"
            case PlaneTrafficKey(replica):
                return f"{self.planes}{encode_name(replica)}/traffic"

    def parse(self, raw: str) -> Key | None:
        """Read a key back; None for one that is not ours (somebody else's key, or a newer modelplane's kind)."""
        if not raw.startswith(self.prefix) or not _is_text(raw):
            return None
        match raw[len(self.prefix) :].split("/"):
            case ["ready", model, version, instance] if _is_version(version):
                return ReadyKey(unquote(model), int(version), unquote(instance))
            case ["models", model]:
                return PolicyKey(unquote(model))
            case ["history", model, generation] if _is_version(generation):
                return HistoryKey(unquote(model), int(generation))
            case ["leader"]:
                return LeaderKey()
            case [kind, name] if name and (make := _NAMED.get(kind)):
                return make(unquote(name))
            case [kind, name, part] if name and (make := _PARTS.get((kind, part))):
                return make(unquote(name))
            case _:
                return None
