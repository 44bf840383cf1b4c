"""What the message of a NACK tells. Pure; the tests hold it to messages of the real Envoy.

Invariant: nothing here is proof. A name that a message contains is only a suspicion, which a response of that name
alone confirms or not; a field is only shown to people.
"""

from __future__ import annotations

import re
from collections.abc import Container

_LONGEST = 1 << 16
"""Envoy prints the whole resource; what tells is at one end or the other."""

# What a resource's name can consist of (names.py); a name that ends in a colon is as good as impossible, but legal.
_WORD = re.compile(r"[A-Za-z0-9_.:/+\-~%@]+")
# protoc-gen-validate, from the outermost message to the innermost: "ClusterValidationError.HealthChecks[0]: embedded
# message failed validation | caused by HealthCheckValidationError.Interval: value is required".
_CONSTRAINT = re.compile(r"(\w+)ValidationError\.(\w+)(\[[^\]]*\])?: ")
# Envoy for what an extension's own rules forbid, and gRPC, whose path is whole.
_FIELDS = (re.compile(r'\bfield: "([^"]+)"'), re.compile(r"\bfield:(\S+) error:"))
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def names_in(message: str, names: Container[str]) -> list[str]:
    """Those of `names` that the message contains as whole words, in its order. Costs what the message is long."""
    if len(message) > 2 * _LONGEST:
        message = f"{message[:_LONGEST]} {message[-_LONGEST:]}"
    found: dict[str, None] = {}
    for match in _WORD.finditer(message):
        word = match.group()
        while word:
            if word in names:
                found[word] = None
                break
            if word[-1] not in ":.":
                break
            # A colon or full stop of the sentence, not of the name.
            word = word[:-1]
    return list(found)


def field_of(message: str) -> str:
    """The field that the message blames, as `Cluster.circuit_breakers.thresholds[0].retry_budget`; empty if none."""
    steps = _CONSTRAINT.findall(message[-_LONGEST:])
    if steps:
        return ".".join((steps[0][0], *(_HUMP.sub("_", field).lower() + index for _, field, index in steps)))
    for pattern in _FIELDS:
        match = pattern.search(message)
        if match:
            return match.group(1)
    return ""
