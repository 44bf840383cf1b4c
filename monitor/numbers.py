"""Says whether an answer holds numbers that are none. Pure. Only the first LOOKED_AT values of each output."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable

from google.protobuf.message import DecodeError

from monitor.pb import tfs_pb2 as tfs

LOOKED_AT = 4096
LARGEST_ANSWER = 16 * 2**20
_FLOAT, _DOUBLE, _HALF, _BFLOAT16 = 1, 2, 19, 14
# The bits of the exponent: all of them are set in NaN and the infinities, and only there.
_EXPONENT = {_HALF: 0x7C00, _BFLOAT16: 0x7F80}


def strange_numbers(answer: bytes) -> str:
    """`NaN in y`, `Inf in scores` of a PredictResponse; empty if all is well, or if it is too large to look."""
    if len(answer) > LARGEST_ANSWER:
        return ""
    try:
        response = tfs.PredictResponse.FromString(answer)
    except DecodeError:
        return ""
    found = []
    for name, tensor in sorted(response.outputs.items()):
        values = _values(tensor)
        words = [word for word, test in (("NaN", math.isnan), ("Inf", math.isinf)) if any(map(test, values))]
        if words:
            found.append(f"{' and '.join(words)} in {name}")
    return ", ".join(found)


def _values(tensor: tfs.TensorProto) -> list[float]:
    if tensor.dtype in _EXPONENT:
        bits = array("H", tensor.tensor_content[: 2 * LOOKED_AT]) if tensor.tensor_content else tensor.half_val
        return list(_widened(bits[:LOOKED_AT], _EXPONENT[tensor.dtype]))
    if tensor.dtype not in (_FLOAT, _DOUBLE):
        return []
    code, size, values = ("f", 4, tensor.float_val) if tensor.dtype == _FLOAT else ("d", 8, tensor.double_val)
    content = tensor.tensor_content[: size * LOOKED_AT]
    return list(array(code, content[: len(content) // size * size]) if content else values[:LOOKED_AT])


def _widened(bits: Iterable[int], exponent: int) -> Iterable[float]:
    for value in bits:
        if value & exponent == exponent:
            mantissa = value & 0x7FFF & ~exponent
            yield math.nan if mantissa else math.inf
