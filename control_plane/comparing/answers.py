"""Whether two answers to one request are the same. Pure.

Invariant: what is compared is bounded (LOOKED_AT values of each output), whatever a model answers.

Numbers `a` and `b` are the same if |a - b| <= tolerance * max(1, |a|, |b|): relative for large ones, absolute for those
between -1 and 1. NaN is the same as NaN, an infinity as itself, and nothing else is the same as them. Whole numbers,
booleans and strings must be equal, for one class is not nearly another; whole numbers of an output for which the policy
names a tolerance are compared by it. Outputs that only the new version has are not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from google.protobuf.message import DecodeError

from control_plane.comparing.tensors import STRING, is_numeric, is_whole, numbers, shape, strings, type_name
from control_plane.pb import predict_pb2
from registry.policy.model import Difference

LEFT_OUT = 1e12
"""The largest tolerance that a policy may name: an output with it is not compared at all."""
_SHOWN = 40


def difference(subject: bytes, reference: bytes, wanted: Difference) -> str:
    """What is different in the subject's PredictResponse: the first thing found, as text; empty if they are the
    same."""
    if subject == reference:
        return ""
    try:
        known, found = (dict(predict_pb2.PredictResponse.FromString(raw).outputs) for raw in (reference, subject))
    except DecodeError:
        return "an answer is no PredictResponse"
    for name, tensor in sorted(known.items()):
        named = wanted.outputs.get(name)
        tolerance = wanted.tolerance if named is None else named
        if tolerance >= LEFT_OUT:
            continue
        if name not in found:
            return f"{name} is missing"
        if named is None and is_whole(tensor.dtype):
            tolerance = 0.0
        if said := _different(found[name], tensor, tolerance):
            return f"{name}{said}"
    return ""


def _different(one: Any, other: Any, tolerance: float) -> str:
    if one.dtype != other.dtype:
        return f" is of {type_name(one.dtype)} instead of {type_name(other.dtype)}"
    if shape(one) != shape(other):
        return f" has shape {list(shape(one))} instead of {list(shape(other))}"
    if one == other:
        return ""
    if one.dtype == STRING:
        return _first(strings(one), strings(other), None)
    if is_numeric(one.dtype):
        return _first(numbers(one), numbers(other), tolerance)
    return f" of {type_name(one.dtype)} is different"


def _first(found: Sequence[Any], known: Sequence[Any], tolerance: float | None) -> str:
    for at, (a, b) in enumerate(zip(found, known, strict=False)):
        if a != b and (tolerance is None or far(a, b, tolerance)):
            return f"[{at}] is {_spell(a)} instead of {_spell(b)}"
    # Of values in memory one may have sent fewer than its shape says.
    return "" if len(found) == len(known) else f" has {len(found)} values instead of {len(known)}"


def far(a: float, b: float, tolerance: float) -> bool:
    """Whether two numbers are more than the tolerance apart."""
    if isinstance(a, float) or isinstance(b, float):
        if math.isnan(a) or math.isnan(b):
            return not (math.isnan(a) and math.isnan(b))
        if math.isinf(a) or math.isinf(b):
            return a != b
    return abs(a - b) > tolerance * max(1, abs(a), abs(b))


def _spell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
