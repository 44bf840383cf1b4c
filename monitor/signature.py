"""Guesses a request from a model's signature: zeros of the inputs' shapes, empty strings. Pure.

Invariant: a guess either has every input that the signature asks for, with its type and a shape that fits, or there is
none and CannotGuess says why.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from monitor.pb import tfs_pb2 as tfs

DEFAULT = "serving_default"
MAX_ELEMENTS = 2**26
"""A guess must not cost the server more memory than an honest request: 256 MiB of float32."""
# predict_util.cc (TF Serving): the method names for which Predict takes a signature.
_METHODS = ("tensorflow/serving/predict", "tensorflow/serving/classify", "tensorflow/serving/regress")
_REFERENCE = 100  # types.proto: DT_x_REF = DT_x + 100
# types.proto's numbers; which field of TensorProto holds the values of a type is told by tensor.proto. One value is
# enough whatever the shape: Tensor::FromProto repeats the last one. float8 types keep theirs in bytes.
_FIELDS = {
    1: "float_val",
    2: "double_val",
    **dict.fromkeys((3, 4, 5, 6, 11, 12, 13, 15, 16, 17, 29, 30, 31, 32), "int_val"),
    7: "string_val",
    8: "scomplex_val",
    9: "int64_val",
    10: "bool_val",
    **dict.fromkeys((14, 19), "half_val"),
    18: "dcomplex_val",
    22: "uint32_val",
    23: "uint64_val",
    **dict.fromkeys((24, 25, 26, 27, 28), "float8_val"),
}
_ZERO: dict[str, bytes | list[bytes] | list[int]] = {
    "string_val": [b""],
    "scomplex_val": [0, 0],
    "dcomplex_val": [0, 0],
    "float8_val": b"\0",
}
_OTHERS = {20: "a resource", 21: "a variant", 33: "a float4"}


class CannotGuess(Exception):  # noqa: N818 - not an error of anybody's
    """No request can be guessed from this signature; the message says why."""


def choose_signature(signatures: Mapping[str, tfs.SignatureDef]) -> str:
    """The signature to ask: `serving_default`, else the only one that Predict takes, else the first of those by name.
    Raises CannotGuess."""
    callable_names = sorted(name for name, signature in signatures.items() if signature.method_name in _METHODS)
    if DEFAULT in callable_names:
        return DEFAULT
    if not callable_names:
        names = ", ".join(sorted(signatures)) or "none at all"
        raise CannotGuess(f"no signature that Predict takes (there is {names})")
    predict = [name for name in callable_names if signatures[name].method_name == _METHODS[0]]
    return (predict or callable_names)[0]


def zeros(signature: tfs.SignatureDef) -> dict[str, tfs.TensorProto]:
    """One tensor for each input that has no default: zeros, false or empty strings; unknown dimensions are 1, like a
    batch of one. Raises CannotGuess."""
    return {name: _zero(name, info) for name, info in signature.inputs.items() if name not in signature.defaults}


def _zero(name: str, info: tfs.TensorInfo) -> tfs.TensorProto:
    if info.WhichOneof("encoding") in ("coo_sparse", "composite_tensor"):
        raise CannotGuess(f"input {name} is a sparse or composite tensor")
    dtype = info.dtype - _REFERENCE if info.dtype > _REFERENCE else info.dtype
    field = _FIELDS.get(dtype)
    if field is None:
        raise CannotGuess(f"input {name} is {_OTHERS.get(dtype, f'of the unknown type {dtype}')}")
    if info.tensor_shape.unknown_rank:
        raise CannotGuess(f"the rank of input {name} is unknown")
    sizes = [1 if dim.size < 0 else dim.size for dim in info.tensor_shape.dim]
    count = math.prod(sizes)
    if count > MAX_ELEMENTS:
        raise CannotGuess(f"input {name} has {count} elements, too many to try")
    tensor = tfs.TensorProto(dtype=dtype)
    # Present even for a scalar: an absent shape is an unset one in some readers.
    tensor.tensor_shape.SetInParent()
    for size in sizes:
        tensor.tensor_shape.dim.add(size=size)
    if count:
        value = _ZERO.get(field, [0])
        if isinstance(value, bytes):
            setattr(tensor, field, value)
        else:
            getattr(tensor, field).extend(value)
    return tensor
