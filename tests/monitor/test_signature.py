"""Guessed requests: which signature, and zeros that TensorFlow itself understands."""

from __future__ import annotations

import pytest

from monitor.pb import tfs_pb2 as tfs
from monitor.signature import CannotGuess, choose_signature, zeros
from monitor.warmup import masked_crc32c
from tests.monitor.scripted_server import predict_signature

PREDICT, CLASSIFY = predict_signature(x=(1, [-1])), predict_signature("tensorflow/serving/classify", x=(7, [-1]))
INIT = predict_signature("__saved_model_init_op")


@pytest.mark.parametrize(
    ("signatures", "chosen"),
    [
        ({"serving_default": CLASSIFY, "a": PREDICT}, "serving_default"),
        ({"only": CLASSIFY, "__saved_model_init_op": INIT}, "only"),
        ({"a": CLASSIFY, "c": PREDICT, "b": PREDICT}, "b"),
        ({"b": CLASSIFY, "a": CLASSIFY}, "a"),
        ({"serving_default": INIT, "b": PREDICT}, "b"),
    ],
)
def test_which_signature(signatures: dict[str, tfs.SignatureDef], chosen: str) -> None:
    assert choose_signature(signatures) == chosen


def test_inputs_with_a_default_are_left_out() -> None:
    signature = predict_signature(x=(1, [2]), y=(1, [2]))
    signature.defaults["y"].dtype = 1
    assert zeros(signature).keys() == {"x"}


@pytest.mark.parametrize(
    ("dtype", "dims", "reason"),
    [
        (20, [], "a resource"),
        (21, [], "a variant"),
        (99, [], "unknown type 99"),
        (1, None, "rank"),
        (1, [2**30], "many"),
    ],
)
def test_what_cannot_be_guessed(dtype: int, dims: list[int] | None, reason: str) -> None:
    with pytest.raises(CannotGuess, match=reason):
        zeros(predict_signature(x=(dtype, dims)))


def test_sparse_inputs_cannot_be_guessed() -> None:
    signature = predict_signature(x=(1, [2]))
    signature.inputs["x"].coo_sparse = b""
    with pytest.raises(CannotGuess, match="sparse"):
        zeros(signature)


def test_the_checksum_of_tfrecords() -> None:
    # RFC 3720, B.4: the CRC-32C of 32 zero bytes is 0x8A9136AA.
    crc = 0x8A9136AA
    assert masked_crc32c(bytes(32)) == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


@pytest.mark.scenario
def test_tensorflow_reads_the_zeros_of_every_type_as_zeros() -> None:
    """Starts nothing; loads TensorFlow."""
    import tensorflow as tf
    from tensorflow.core.framework import types_pb2

    left_out = {"DT_INVALID", "DT_RESOURCE", "DT_VARIANT", "DT_FLOAT4_E2M1FN"}
    # Types whose values can't be cast to a float here; that TensorFlow parses them is all that is asked.
    opaque = ("DT_FLOAT8", "DT_INT4", "DT_UINT4", "DT_INT2", "DT_UINT2", "DT_Q", "DT_BOOL")
    types = {name: n for name, n in types_pb2.DataType.items() if not name.endswith("_REF") and name not in left_out}
    assert len(types) > 20
    for name, dtype in types.items():
        for dims in ([], [-1, 3], [0, 2]):
            ours = zeros(predict_signature(x=(dtype, dims)))["x"]
            tensor = tf.io.parse_tensor(ours.SerializeToString(), tf.as_dtype(dtype))
            assert tensor.shape.as_list() == [1 if dim < 0 else dim for dim in dims], name
            if name == "DT_STRING":
                assert tf.reduce_all(tensor == ""), name
            elif not name.startswith(opaque):
                assert tf.reduce_all(tf.cast(tensor, tf.complex128) == 0), name


@pytest.mark.scenario
def test_our_messages_are_the_official_ones_on_the_wire() -> None:
    """Starts nothing; loads TensorFlow. Every field of ours has the official name, number, type and label."""
    from google.protobuf.descriptor import Descriptor, FieldDescriptor
    from tensorflow.core.framework import tensor_pb2
    from tensorflow.core.protobuf import meta_graph_pb2
    from tensorflow_serving.apis import (
        classification_pb2,
        get_model_metadata_pb2,
        get_model_status_pb2,
        predict_pb2,
        prediction_log_pb2,
        regression_pb2,
    )
    from tensorflow_serving.config import model_server_config_pb2

    def same(ours: Descriptor, theirs: Descriptor, seen: set[str]) -> None:
        if ours.full_name + theirs.full_name in seen or ours.full_name.startswith("google."):
            return
        seen.add(ours.full_name + theirs.full_name)
        for field in ours.fields:
            other = theirs.fields_by_number[field.number]
            assert (field.name, field.is_repeated) == (other.name, other.is_repeated), field.full_name
            if field.message_type and other.message_type:
                same(field.message_type, other.message_type, seen)
            elif field.type != other.type:
                # What is only passed on: a message kept as bytes, an enum as its number.
                kinds = {(FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_MESSAGE)}
                kinds.add((FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_ENUM))
                assert (field.type, other.type) in kinds, field.full_name

    seen: set[str] = set()
    for ours, theirs in (
        (tfs.GetModelStatusRequest, get_model_status_pb2.GetModelStatusRequest),
        (tfs.GetModelStatusResponse, get_model_status_pb2.GetModelStatusResponse),
        (tfs.GetModelMetadataRequest, get_model_metadata_pb2.GetModelMetadataRequest),
        (tfs.GetModelMetadataResponse, get_model_metadata_pb2.GetModelMetadataResponse),
        (tfs.SignatureDefMap, get_model_metadata_pb2.SignatureDefMap),
        (tfs.SignatureDef, meta_graph_pb2.SignatureDef),
        (tfs.TensorProto, tensor_pb2.TensorProto),
        (tfs.PredictRequest, predict_pb2.PredictRequest),
        (tfs.ExamplesRequest, classification_pb2.ClassificationRequest),
        (tfs.ExamplesRequest, regression_pb2.RegressionRequest),
        (tfs.PredictionLog, prediction_log_pb2.PredictionLog),
        (tfs.ModelServerConfig, model_server_config_pb2.ModelServerConfig),
    ):
        same(ours.DESCRIPTOR, theirs.DESCRIPTOR, seen)
    assert len(seen) > 20
    states = get_model_status_pb2.ModelVersionStatus.State.items()
    assert tfs.ModelVersionStatus.State.items() == states
