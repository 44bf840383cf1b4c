"""Which versions of a model answer: the value of `traffic/<model>`, which the leader resolves from the model's policy
and every control plane turns into routes.

Invariant: somebody answers: the weights are not all 0. A model without this key is routed as if it had no policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from registry.fields import read_figure, read_members, read_optional_int64, read_rows, read_version_key
from registry.records import RecordError, dump_document, read_document, read_field, read_int64, read_text

_SHARE = read_figure(0, 1)
_PERCENT = read_figure(0, 100)


@dataclass(frozen=True, slots=True)
class Mirror:
    """A copy of `percent` of the requests goes to `model`, and its answers are thrown away. `version` None: as a
    request goes that names no version."""

    percent: float
    model: str
    version: int | None = None


@dataclass(frozen=True, slots=True)
class TrafficRecord:
    """`weights`: parts by version; only these versions answer a request that names no version and no label. `labels`:
    the router resolves these, and leaves all others to the server. `sticky_by`: a header or metadata key, lower case;
    requests that agree in it get the same version. `observe`: the share, 0 to 1, of requests whose outcome Envoy logs
    to the control plane; `compare`: of those that are sent to the comparer too. `generation`: the policy's that this
    was resolved from."""

    weights: Mapping[int, int]
    labels: Mapping[str, int] = field(default_factory=dict)
    sticky_by: str = ""
    mirrors: tuple[Mirror, ...] = ()
    observe: float = 0.0
    compare: float = 0.0
    generation: int = 0


def encode_traffic(record: TrafficRecord) -> bytes:
    """Spell it."""
    return dump_document(
        {
            "weights": {str(version): weight for version, weight in sorted(record.weights.items())},
            "labels": dict(sorted(record.labels.items())),
            "stickyBy": record.sticky_by,
            "mirrors": [
                {"percent": one.percent, "model": one.model} | ({} if one.version is None else {"version": one.version})
                for one in record.mirrors
            ],
            "observe": record.observe,
            "compare": record.compare,
            "generation": record.generation,
        }
    )


def decode_traffic(raw: bytes) -> TrafficRecord:
    """Read it back. Raises RecordError."""
    document = read_document(raw)
    weights = read_field(document, "weights", read_members(read_version_key, read_int64))
    if not any(weights.values()):
        raise RecordError("field 'weights': no version has a weight above 0, so nobody would answer")
    return TrafficRecord(
        weights,
        read_field(document, "labels", read_members(read_text, read_int64), {}),
        read_field(document, "stickyBy", read_text, ""),
        read_field(document, "mirrors", read_rows(_mirror), ()),
        read_field(document, "observe", _SHARE, 0.0),
        read_field(document, "compare", _SHARE, 0.0),
        read_field(document, "generation", read_int64, 0),
    )


def _mirror(row: Any) -> Mirror:
    return Mirror(
        read_field(row, "percent", _PERCENT),
        read_field(row, "model", read_text),
        read_field(row, "version", read_optional_int64, None),
    )
