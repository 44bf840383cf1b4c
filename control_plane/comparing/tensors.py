"""The values in a TensorProto, without TensorFlow. Pure.

Both spellings are read: `tensor_content` (the values in memory, little-endian) and the `*_val` field of the type, of
which the last value stands for all that are missing (Tensor::FromProto in tensorflow/core/framework/tensor.cc).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

LOOKED_AT = 4096
"""Values of a tensor that are looked at: the first ones."""


class _Type(NamedTuple):
    """`code`: struct's, of one number in memory; `numbers`: per value."""

    name: str
    field: str
    code: str = ""
    whole: bool = False
    numbers: int = 1


STRING = 7
_HALF, _BFLOAT16 = 19, 14
# types.proto's numbers.
_TYPES = {
    1: _Type("float", "float_val", "f"),
    2: _Type("double", "double_val", "d"),
    3: _Type("int32", "int_val", "i", whole=True),
    4: _Type("uint8", "int_val", "B", whole=True),
    5: _Type("int16", "int_val", "h", whole=True),
    6: _Type("int8", "int_val", "b", whole=True),
    STRING: _Type("string", "string_val"),
    8: _Type("complex64", "scomplex_val", "f", numbers=2),
    9: _Type("int64", "int64_val", "q", whole=True),
    10: _Type("bool", "bool_val", "?", whole=True),
    11: _Type("qint8", "int_val", "b", whole=True),
    12: _Type("quint8", "int_val", "B", whole=True),
    13: _Type("qint32", "int_val", "i", whole=True),
    _BFLOAT16: _Type("bfloat16", "half_val", "H"),
    15: _Type("qint16", "int_val", "h", whole=True),
    16: _Type("quint16", "int_val", "H", whole=True),
    17: _Type("uint16", "int_val", "H", whole=True),
    18: _Type("complex128", "dcomplex_val", "d", numbers=2),
    _HALF: _Type("half", "half_val", "H"),
    22: _Type("uint32", "uint32_val", "I", whole=True),
    23: _Type("uint64", "uint64_val", "Q", whole=True),
}


def type_name(dtype: int) -> str:
    """For people."""
    known = _TYPES.get(dtype)
    return known.name if known else f"type {dtype}"


def is_whole(dtype: int) -> bool:
    """Whether its values are whole numbers or true and false, of which one more or less is another."""
    known = _TYPES.get(dtype)
    return known is not None and known.whole


def is_numeric(dtype: int) -> bool:
    """Whether `numbers` can read it."""
    known = _TYPES.get(dtype)
    return known is not None and bool(known.code)


def shape(tensor: Any) -> tuple[int, ...]:
    """Its dimensions."""
    return tuple(dim.size for dim in tensor.tensor_shape.dim)


def numbers(tensor: Any) -> Sequence[float]:
    """Of a numeric tensor, the first values; two numbers for each complex one."""
    kind = _TYPES[tensor.dtype]
    wanted = _wanted(tensor) * kind.numbers
    if tensor.tensor_content:
        there = min(wanted, len(tensor.tensor_content) // struct.calcsize(f"<{kind.code}"))
        found: Sequence[Any] = struct.unpack_from(f"<{there}{kind.code}", tensor.tensor_content)
    else:
        found = _filled(getattr(tensor, kind.field), wanted, kind.numbers, 0)
    if tensor.dtype == _HALF:
        return struct.unpack(f"<{len(found)}e", struct.pack(f"<{len(found)}H", *_sixteen(found)))
    if tensor.dtype == _BFLOAT16:
        # The upper half of a float.
        return struct.unpack(f"<{len(found)}f", b"".join(struct.pack("<HH", 0, bits) for bits in _sixteen(found)))
    return found


def strings(tensor: Any) -> Sequence[bytes]:
    """Of a string tensor, the first values."""
    return _filled(tensor.string_val, _wanted(tensor), 1, b"")


def _wanted(tensor: Any) -> int:
    return min(LOOKED_AT, max(0, math.prod(shape(tensor))))


def _filled(values: Sequence[Any], wanted: int, each: int, nothing: Any) -> list[Any]:
    found = list(values[:wanted])
    last = found[-each:] if len(found) >= each else [nothing] * each
    while len(found) < wanted:
        found += last
    return found[:wanted]


def _sixteen(values: Sequence[int]) -> list[int]:
    return [value & 0xFFFF for value in values]
