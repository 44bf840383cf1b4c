"""Changes cut into transactions. Invariant: the transactions, applied in order, leave what the changes leave, and each
is within etcd's limits; changes that were made together are in one transaction wherever those limits allow, and where
they don't, those of one model still are. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from registry.etcd.model import encode_key

MAX_OPERATIONS = 128
"""etcd's --max-txn-ops; it counts comparisons and each branch for themselves."""
MAX_BYTES = 1_500_000
"""Under etcd's --max-request-bytes of 1.5 MiB."""
_OVERHEAD = 40
"""Bytes that an operation takes on the wire beside its key and value, at most: tags, lengths and the lease."""

Group: TypeAlias = Mapping[str, bytes | None]
"""Changes that were made together: None deletes."""


def size(key: str, value: bytes | None) -> int:
    """The bytes that one change takes in a request, rounded up."""
    return len(encode_key(key)) + len(value or b"") + _OVERHEAD


def split(changes: Group) -> list[dict[str, bytes | None]]:
    """Cut changes into groups that each fit into one transaction, in order but for those of one model, which come
    together. Raises ValueError for a value that fits into none."""
    groups: list[dict[str, bytes | None]] = []
    room = 0
    for model in _by_model(changes):
        needed = sum(size(*change) for change in model.items())
        alone = needed > MAX_BYTES or len(model) > MAX_OPERATIONS
        if alone or not groups or needed > room or len(groups[-1]) + len(model) > MAX_OPERATIONS:
            pieces = _cut(model) if alone else [model]
            groups += pieces
            room = MAX_BYTES - sum(size(*change) for change in pieces[-1].items())
        else:
            groups[-1].update(model)
            room -= needed
    return groups


def _by_model(changes: Group) -> Iterable[dict[str, bytes | None]]:
    """A model's readiness keys are alike but for their last two segments, version and instance."""
    models: dict[str, dict[str, bytes | None]] = {}
    for key, value in changes.items():
        models.setdefault(key.rsplit("/", 2)[0], {})[key] = value
    return models.values()


def _cut(changes: Group) -> list[dict[str, bytes | None]]:
    """Cut what is too much for one transaction."""
    groups: list[dict[str, bytes | None]] = []
    room = 0
    for key, value in changes.items():
        needed = size(key, value)
        if needed > MAX_BYTES:
            raise ValueError(f"{key}: a value of {len(value or b'')} bytes is more than etcd takes ({MAX_BYTES})")
        if not groups or needed > room or len(groups[-1]) == MAX_OPERATIONS:
            groups.append({})
            room = MAX_BYTES
        groups[-1][key] = value
        room -= needed
    return groups


def merge(groups: Sequence[Group]) -> tuple[dict[str, bytes | None], int]:
    """The next transaction out of groups that each fit: as many whole groups from the front as fit together, a later
    change of a key overriding an earlier one, and how many groups that took."""
    merged: dict[str, bytes | None] = {}
    room = MAX_BYTES
    for taken, group in enumerate(groups):
        overridden = group.keys() & merged.keys()
        room += sum(size(key, merged[key]) for key in overridden) - sum(size(*change) for change in group.items())
        if len(merged) + len(group) - len(overridden) > MAX_OPERATIONS or room < 0:
            return merged, taken
        merged.update(group)
    return merged, len(groups)
