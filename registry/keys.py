"""The registry's keys. Invariant: `parse_key(make(x)) == x` for every name, whatever characters it holds.

Names are percent-encoded with nothing but RFC 3986's unreserved characters left as they are, so that a slash in a
model's name can't forge another key and `etcdctl get --prefix` still reads well.
"""

from __future__ import annotations

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
class DrainKey:
    """`drains/<instance>`: what an operator wants drained of one instance."""

    instance: str


@dataclass(frozen=True, slots=True)
class ClaimKey:
    """`claims/<instance>`: which monitor may write the keys of one instance."""

    instance: str


Key: TypeAlias = InstanceKey | LoadKey | ReadyKey | PolicyKey | PlaneKey | NodesKey | SuspectsKey | DrainKey | ClaimKey


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

    def make(self, key: Key) -> str:
        """Spell a key out, prefix included."""
        match key:
            case InstanceKey(instance):
                return self.instances + encode_name(instance)
            case LoadKey(instance):
                return f"{self.instances}{encode_name(instance)}/load"
            case ReadyKey(model, version, instance):
                return f"{self.ready}{encode_name(model)}/{version}/{encode_name(instance)}"
            case PolicyKey(model):
                return self.models + encode_name(model)
            case PlaneKey(replica):
                return self.planes + encode_name(replica)
            case NodesKey(replica):
                return f"{self.planes}{encode_name(replica)}/nodes"
            case SuspectsKey(replica):
                return f"{self.planes}{encode_name(replica)}/suspects"
            case DrainKey(instance):
                return self.drains + encode_name(instance)
            case ClaimKey(instance):
                return self.claims + encode_name(instance)

    def parse(self, raw: str) -> Key | None:
        """Read a key back; None for one that is not ours (somebody else's key, or a newer modelplane's kind)."""
        if not raw.startswith(self.prefix) or not _is_text(raw):
            return None
        match raw[len(self.prefix) :].split("/"):
            case ["instances", instance] if instance:
                return InstanceKey(unquote(instance))
            case ["instances", instance, "load"] if instance:
                return LoadKey(unquote(instance))
            case ["ready", model, version, instance] if _is_version(version):
                return ReadyKey(unquote(model), int(version), unquote(instance))
            case ["models", model]:
                return PolicyKey(unquote(model))
            case ["planes", replica] if replica:
                return PlaneKey(unquote(replica))
            case ["planes", replica, "nodes"] if replica:
                return NodesKey(unquote(replica))
            case ["planes", replica, "suspects"] if replica:
                return SuspectsKey(unquote(replica))
            case ["drains", instance] if instance:
                return DrainKey(unquote(instance))
            case ["claims", instance] if instance:
                return ClaimKey(unquote(instance))
            case _:
                return None
