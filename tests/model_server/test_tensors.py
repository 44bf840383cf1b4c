"""TensorProto both ways, by Tensor::FromProto's rules."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st

from model_server.libtensorflow import Tensor
from model_server.messages import tensor_pb2, types_pb2
from model_server.tensors import KINDS, decode_tensor, encode_tensor


def proto_of(text: str) -> Any:
    return text_format.Parse(text, tensor_pb2.TensorProto())


@given(st.sampled_from(sorted(KINDS)), st.integers(0, 40), st.randoms(use_true_random=False))
def test_typed_fields_carry_every_bit(dtype: int, count: int, random: Any) -> None:
    kind = KINDS[dtype]
    data = random.randbytes(count * kind.width * np.dtype(kind.storage).itemsize)
    if dtype == types_pb2.DT_BOOL:
        data = bytes(byte & 1 for byte in data)
    if kind.storage in (np.float32, np.float64):  # a signalling NaN may be quieted on its way through Python
        numbers = [float(random.randint(-9, 9)) / 7 for _ in range(count * kind.width)]
        data = np.array(numbers, kind.storage).tobytes()
    proto = tensor_pb2.TensorProto()
    encode_tensor(Tensor(dtype, (count,), data), proto)
    assert len(getattr(proto, kind.field)) == count * kind.width
    assert not proto.tensor_content
    assert decode_tensor(proto) == Tensor(dtype, (count,), data)
    assert decode_tensor(tensor_pb2.TensorProto.FromString(proto.SerializeToString())) == Tensor(dtype, (count,), data)


def test_large_integer_tensors_equal_protobufs_own_packing() -> None:
    values = np.arange(-70_000, 70_000, dtype=np.int32)
    proto, plain = tensor_pb2.TensorProto(), tensor_pb2.TensorProto()
    encode_tensor(Tensor(types_pb2.DT_INT32, (len(values),), values.tobytes()), proto)
    plain.int_val.extend(values.tolist())
    assert list(proto.int_val) == list(plain.int_val)


FLOATS = "dtype: DT_FLOAT tensor_shape { dim { size: 3 } }"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (f"{FLOATS} float_val: [1, 2, 3]", (1, 2, 3)),
        (f"{FLOATS} float_val: 7", (7, 7, 7)),
        (f"{FLOATS} float_val: [1, 2]", (1, 2, 2)),
        (f"{FLOATS} float_val: [1, 2, 3, 4]", (1, 2, 3)),
        (FLOATS, (0, 0, 0)),
    ],
)
def test_last_value_repeats(text: str, values: tuple[float, ...]) -> None:
    assert decode_tensor(proto_of(text)) == Tensor(types_pb2.DT_FLOAT, (3,), struct.pack("<3f", *values))


@pytest.mark.parametrize(
    "text",
    [
        f'{FLOATS} tensor_content: "1234"',
        "dtype: DT_FLOAT tensor_shape { unknown_rank: true }",
        "dtype: DT_FLOAT tensor_shape { dim { size: -1 } }",
        "tensor_shape { }",
        "dtype: DT_VARIANT tensor_shape { }",
    ],
)
def test_malformed(text: str) -> None:
    assert decode_tensor(proto_of(text)) is None
