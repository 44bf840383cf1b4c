"""`planes/<replica>/suspects`: the readiness keys that a replica goes on with although their leases are lost.

Invariant: `decode_lost(encode_lost(entries)) == entries`, up to MOST keys. A replica that starts takes them over, for
no list of the registry tells of what is missing from it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from itertools import islice

from registry.records import RecordError

MOST = 10_000
"""Keys in one value: some 600 KB, below half of what etcd takes. Those beyond are not told."""


def encode_lost(entries: Mapping[str, bytes]) -> bytes:
    """Spell keys with their values; a value that many keys have, as of an instance with many models, is there once."""
    by_value: defaultdict[str, list[str]] = defaultdict(list)
    for key, value in islice(sorted(entries.items()), MOST):
        by_value[value.decode()].append(key)
    records = [{"value": json.loads(value), "keys": keys} for value, keys in sorted(by_value.items())]
    return json.dumps({"records": records}, separators=(",", ":"), ensure_ascii=False).encode()


def decode_lost(raw: bytes) -> dict[str, bytes]:
    """Read keys with their values. Raises RecordError."""
    try:
        rows = json.loads(raw)["records"]
        return {
            key: json.dumps(row["value"], separators=(",", ":"), ensure_ascii=False).encode()
            for row in rows
            for key in row["keys"]
            if isinstance(key, str)
        }
    except (ValueError, TypeError, LookupError) as error:
        raise RecordError(f"not a list of lost keys: {error!r}") from error
