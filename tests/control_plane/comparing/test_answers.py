"""Whether two answers are the same; the tensors are TensorFlow's own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from tensorflow_serving.apis import predict_pb2 as official

from control_plane.comparing.answers import difference, far
from control_plane.comparing.comparer import pinned
from control_plane.comparing.tensors import LOOKED_AT
from registry.policy.model import Difference

WANTED = Difference(tolerance=0.01)


def answer(**outputs: Any) -> bytes:
    response = official.PredictResponse()
    for name, value in outputs.items():
        response.outputs[name].CopyFrom(value if hasattr(value, "SerializeToString") else proto(value))
    return response.SerializeToString()


def proto(value: Any, dtype: Any = None) -> Any:
    return tf.make_tensor_proto(value, dtype)


def spelt_out(value: Any) -> Any:
    """The same tensor with `tensor_content`, as TF Serving sends larger ones."""
    array = np.asarray(value)
    tensor = tf.make_tensor_proto(array)
    for field in ("float_val", "double_val", "int_val", "int64_val", "half_val", "bool_val", "scomplex_val"):
        tensor.ClearField(field)
    tensor.tensor_content = array.tobytes()
    return tensor


@pytest.mark.parametrize(
    "dtype",
    [
        "float32",
        "float64",
        "float16",
        "bfloat16",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "bool",
        "complex64",
    ],
)
def test_a_type_is_read_in_both_spellings(dtype: str) -> None:
    kind = tf.as_dtype(dtype).as_numpy_dtype
    one, other = np.array([1, 0, 1], dtype=kind), np.array([1, 0, 0], dtype=kind)
    assert difference(answer(y=proto(one)), answer(y=spelt_out(one)), WANTED) == ""
    assert "y[" in difference(answer(y=proto(one)), answer(y=spelt_out(other)), WANTED)
    assert "y[" in difference(answer(y=spelt_out(other)), answer(y=proto(one)), WANTED)


def test_a_value_that_stands_for_all_is_read_as_all() -> None:
    splat = proto(1.0)
    splat.tensor_shape.CopyFrom(proto([1.0] * 4).tensor_shape)
    assert difference(answer(y=splat), answer(y=spelt_out(np.ones(4, np.float32))), WANTED) == ""


def test_numbers_may_differ_by_the_tolerance_and_say_where_they_do_by_more() -> None:
    known = answer(y=[1.0, 1000.0])
    assert difference(answer(y=[1.009, 1009.0]), known, WANTED) == ""
    assert difference(answer(y=[1.0, 1020.0]), known, WANTED) == "y[1] is 1020 instead of 1000"
    assert difference(answer(y=[1.0, 1020.0]), known, Difference(outputs={"y": 0.1})) == ""
    assert difference(answer(y=[1.0, 1020.0]), known, Difference(outputs={"x": 0.1})) != ""


def test_an_output_with_the_largest_tolerance_is_left_out() -> None:
    wanted = Difference(outputs={"noise": 1e12})
    assert difference(answer(y=1.0, noise=math.nan), answer(y=1.0, noise=[3.0, 4.0]), wanted) == ""
    assert difference(answer(y=1.0), answer(y=1.0, noise=3.0), wanted) == ""


def test_one_class_is_not_nearly_another() -> None:
    assert difference(answer(c=np.int64(1001)), answer(c=np.int64(1000)), WANTED) == "c[0] is 1001 instead of 1000"
    assert difference(answer(c=np.int64(1001)), answer(c=np.int64(1000)), Difference(outputs={"c": 0.01})) == ""
    assert difference(answer(c=[b"cat"]), answer(c=[b"dog"]), WANTED) == "c[0] is cat instead of dog"


def test_nan_is_the_same_as_nan_and_as_nothing_else() -> None:
    nan, inf = math.nan, math.inf
    assert difference(answer(y=[nan, inf, -inf]), answer(y=[nan, inf, -inf]), WANTED) == ""
    for one, other in ((nan, 1.0), (1.0, nan), (inf, -inf), (inf, 1e30), (1.0, inf)):
        assert "y[0]" in difference(answer(y=[one]), answer(y=[other]), WANTED)


def test_types_shapes_and_missing_outputs_differ_and_new_ones_do_not() -> None:
    assert difference(answer(y=np.float64(1)), answer(y=1.0), WANTED) == "y is of double instead of float"
    assert difference(answer(y=[1.0]), answer(y=[[1.0]]), WANTED) == "y has shape [1] instead of [1, 1]"
    assert difference(answer(z=1.0), answer(y=1.0, z=1.0), WANTED) == "y is missing"
    assert difference(answer(y=1.0, z=1.0), answer(y=1.0), WANTED) == ""


def test_only_the_first_values_are_looked_at() -> None:
    one, other = np.zeros(LOOKED_AT + 10, np.float32), np.zeros(LOOKED_AT + 10, np.float32)
    other[LOOKED_AT] = 1.0
    assert difference(answer(y=one), answer(y=other), WANTED) == ""
    other[LOOKED_AT - 1] = 1.0
    assert "y[4095]" in difference(answer(y=one), answer(y=other), WANTED)


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_bytes_of_any_kind_are_told_apart_without_an_error(one: bytes, other: bytes) -> None:
    difference(one, other, WANTED)


@given(st.floats(), st.floats(), st.floats(0, 1))
def test_far_is_the_same_both_ways(a: float, b: float, tolerance: float) -> None:
    assert far(a, b, tolerance) == far(b, a, tolerance)
    assert not far(a, a, tolerance)


def test_a_pinned_request_names_the_version_and_keeps_everything_else() -> None:
    request = official.PredictRequest(output_filter=["y"])
    request.model_spec.name, request.model_spec.version_label = "digits", "canary"
    request.model_spec.signature_name = "other"
    request.inputs["x"].CopyFrom(proto([1.0, 2.0]))
    found = official.PredictRequest.FromString(pinned(request.SerializeToString(), "digits", 300))
    assert found.model_spec.version.value == 300
    assert found.model_spec.WhichOneof("version_choice") == "version"
    assert (found.model_spec.name, found.model_spec.signature_name) == ("digits", "other")
    assert found.inputs == request.inputs
    assert list(found.output_filter) == ["y"]
