"""TensorProto to Tensor and back. Invariant: a decoded tensor has exactly the bytes that its shape and type ask for.

Answers carry TF Serving's typed fields (`float_val`, not `tensor_content`), because that is what clients read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from model_server.libtensorflow import DT_STRING, Tensor
from model_server.messages import tensor_pb2, types_pb2


class Kind(NamedTuple):
    """How one DataType is stored: numpy's type for its bytes, and TensorProto's field for its values.

    bfloat16 and half travel as the bits of a uint16 in `half_val`; complex numbers as pairs of floats (`width` 2).
    """

    storage: Any
    field: str
    width: int = 1


KINDS: dict[int, Kind] = {
    types_pb2.DT_FLOAT: Kind(np.float32, "float_val"),
    types_pb2.DT_DOUBLE: Kind(np.float64, "double_val"),
    types_pb2.DT_INT32: Kind(np.int32, "int_val"),
    types_pb2.DT_UINT8: Kind(np.uint8, "int_val"),
    types_pb2.DT_INT16: Kind(np.int16, "int_val"),
    types_pb2.DT_INT8: Kind(np.int8, "int_val"),
    types_pb2.DT_UINT16: Kind(np.uint16, "int_val"),
    types_pb2.DT_INT64: Kind(np.int64, "int64_val"),
    types_pb2.DT_UINT32: Kind(np.uint32, "uint32_val"),
    types_pb2.DT_UINT64: Kind(np.uint64, "uint64_val"),
    types_pb2.DT_BOOL: Kind(np.bool_, "bool_val"),
    types_pb2.DT_HALF: Kind(np.uint16, "half_val"),
    types_pb2.DT_BFLOAT16: Kind(np.uint16, "half_val"),
    types_pb2.DT_COMPLEX64: Kind(np.float32, "scomplex_val", 2),
    types_pb2.DT_COMPLEX128: Kind(np.float64, "dcomplex_val", 2),
}
# A packed field of these is the array's own little-endian bytes.
_SAME_BYTES = {"float_val", "double_val", "scomplex_val", "dcomplex_val"}


def decode_tensor(proto: Any) -> Tensor | None:
    """Read a TensorProto by Tensor::FromProto's rules: content of exactly the right size, or values of which the last
    is repeated and surplus ones are dropped. None for what it refuses ("tensor parsing error")."""
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in shape):
        return None
    count = math.prod(shape)
    if proto.dtype == DT_STRING:
        if proto.tensor_content:
            return None
        return Tensor(DT_STRING, shape, _filled(list(proto.string_val), count, b""))
    kind = KINDS.get(proto.dtype)
    if kind is None:
        return None
    if proto.tensor_content:
        right = len(proto.tensor_content) == count * kind.width * np.dtype(kind.storage).itemsize
        return Tensor(proto.dtype, shape, proto.tensor_content) if right else None
    values = _values(proto, kind)
    if len(values) != count * kind.width:
        # One value for the whole tensor is how TensorFlow spells a constant.
        pieces = values[: len(values) // kind.width * kind.width].reshape(-1, kind.width)
        values = np.zeros((count, kind.width), kind.storage)
        if len(pieces):
            values[: len(pieces)] = pieces[:count]
            values[len(pieces) :] = pieces[-1]
    return Tensor(proto.dtype, shape, values.tobytes())


def _values(proto: Any, kind: Kind) -> Any:
    values = getattr(proto, kind.field)
    if kind.field in _SAME_BYTES and len(values) > 1 and proto.ListFields()[-1][0].name == kind.field:
        # Fields are serialised by number, so the message ends with these bytes: 50 times faster than one by one.
        return np.frombuffer(proto.SerializeToString()[-np.dtype(kind.storage).itemsize * len(values) :], kind.storage)
    # By way of int64, because TensorFlow cuts what doesn't fit a narrow type and numpy would refuse it.
    exact = kind.field in _SAME_BYTES or kind.field == "uint64_val"
    return np.array(values, kind.storage if exact else np.int64).astype(kind.storage)


def _filled(values: list[bytes], count: int, default: bytes) -> Sequence[bytes]:
    last = values[-1] if values else default
    return values[:count] + [last] * (count - len(values))


def encode_tensor(tensor: Tensor, proto: Any) -> None:
    """Fill an empty TensorProto."""
    proto.dtype = tensor.dtype
    for size in tensor.shape:
        proto.tensor_shape.dim.add(size=size)
    if not isinstance(tensor.data, bytes):
        proto.string_val.extend(tensor.data)
        return
    kind = KINDS.get(tensor.dtype)
    if kind is None:
        proto.tensor_content = tensor.data
    elif tensor.data:
        # Pasted in as one packed field: extend() takes a second for a few million values.
        same = kind.field in _SAME_BYTES
        packed = tensor.data if same else _packed_varints(np.frombuffer(tensor.data, kind.storage))
        number = tensor_pb2.TensorProto.DESCRIPTOR.fields_by_name[kind.field].number
        proto.MergeFromString(_varint(number << 3 | 2) + _varint(len(packed)) + packed)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _packed_varints(numbers: Any) -> bytes:
    """Protobuf's base-128 varints, negative numbers as 64-bit ones; in pieces that fit a processor's cache."""
    pieces = []
    for start in range(0, len(numbers), 1 << 16):
        piece = numbers[start : start + (1 << 16)]
        if piece.dtype.kind == "i" and piece.min() < 0:
            piece = piece.astype(np.int64)
        unsigned = piece.view(f"u{piece.itemsize}")
        columns = max(1, -(-int(unsigned.max()).bit_length() // 7))
        groups = unsigned[:, None] >> np.arange(0, 7 * columns, 7, dtype=unsigned.dtype)
        more = (groups >> 7) != 0
        coded = (groups & 0x7F).astype(np.uint8) | (more.astype(np.uint8) << 7)
        written = np.ones_like(more)
        written[:, 1:] = more[:, :-1]
        pieces.append(coded[written].tobytes())
    return b"".join(pieces)


def to_array(tensor: Tensor) -> Any:
    """A numpy array of the values; strings as objects. For REST, so half and bfloat16 become float32."""
    if not isinstance(tensor.data, bytes):
        return np.array(tensor.data, dtype=object).reshape(tensor.shape)
    kind = KINDS[tensor.dtype]
    array = np.frombuffer(tensor.data, kind.storage)
    if tensor.dtype == types_pb2.DT_HALF:
        array = array.view(np.float16).astype(np.float32)
    elif tensor.dtype == types_pb2.DT_BFLOAT16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.reshape(tensor.shape)
