"""How a policy lies in `models/<model>` and `history/<model>/<generation>`: the document as it was given, and who
changed it, when, why. Invariant: `decode_stored(encode_stored(stored)) == stored`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from registry.policy.model import Policy
from registry.policy.read import PolicyErrors, read_policy
from registry.records import RecordError, read_document, read_field, read_int64, read_text

_LAST_TIME = 253_402_300_799
"""The end of the year 9999, the last that a date can have."""


@dataclass(frozen=True, slots=True)
class StoredPolicy:
    """`document`: as the operator gave it. `generation`: 1 for the first, one more with each change, going on where
    it was if the model is deleted and applied again; `at`: unix seconds; `by`: USER@HOST; `message`: why."""

    document: Mapping[str, Any]
    generation: int
    at: float = 0.0
    by: str = ""
    message: str = ""


def encode_stored(stored: StoredPolicy) -> bytes:
    """Spell it."""
    document = {
        "generation": stored.generation,
        "at": stored.at,
        "by": stored.by,
        "message": stored.message,
        "document": stored.document,
    }
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def decode_stored(raw: bytes) -> StoredPolicy:
    """Read it back, without a look at whether the document is a policy. Raises RecordError."""
    document = read_document(raw)
    return StoredPolicy(
        read_field(document, "document", _mapping),
        read_field(document, "generation", read_int64),
        read_field(document, "at", _time, 0.0),
        read_field(document, "by", read_text, ""),
        read_field(document, "message", read_text, ""),
    )


def read_stored(raw: bytes, model: str) -> tuple[StoredPolicy, Policy]:
    """What lies in `models/<model>`, with its policy. Raises RecordError, one line that names the first field that
    can't be read, also where the policy is another model's."""
    stored = decode_stored(raw)
    try:
        policy = read_policy(stored.document)
    except PolicyErrors as error:
        raise RecordError(str(error)) from error
    if policy.name != model:
        raise RecordError(f"metadata.name: it is {policy.name!r}, but this is the key of {model!r}")
    return stored, policy


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("not an object")
    return value


def _time(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("not a number")
    if not 0 <= value <= _LAST_TIME:
        raise ValueError(f"not between 0 and {_LAST_TIME}")
    return float(value)
