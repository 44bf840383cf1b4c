"""The table of TF Serving's answers (gRPC), row by row, from one real server through the official client.

Waits for the server's port to open, which is when all of its models are loaded.
"""

from __future__ import annotations

import struct
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf import text_format
from grpc_health.v1 import health_pb2, health_pb2_grpc

from model_server.messages import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
    regression_pb2,
    types_pb2,
)
from tests.support.model_server import ModelServer
from tests.support.saved_models import predict_request

pytestmark = pytest.mark.scenario

X = 'inputs { key: "x" value { dtype: DT_FLOAT tensor_shape { dim { size: 1 } } float_val: 1 } }'
HPT = f'model_spec {{ name: "hpt" }} {X}'
REQUESTS = {
    "Predict": predict_pb2.PredictRequest,
    "GetModelMetadata": get_model_metadata_pb2.GetModelMetadataRequest,
    "GetModelStatus": get_model_status_pb2.GetModelStatusRequest,
    "Classify": classification_pb2.ClassificationRequest,
    "Regress": regression_pb2.RegressionRequest,
}
EXAMPLES = "input { example_list { examples { features { feature { key: 'x' value { float_list { value: 3 } } } } } } }"
WITH_CONTEXT = (
    "input { example_list_with_context { context { features { feature { key: 'x' value { float_list { value: 5 } } } }"
    " } examples { } examples { features { feature { key: 'x' value { float_list { value: 7 } } } } } } }"
)


def ask(server: ModelServer, method: str, text: str) -> Any:
    request = text_format.Parse(text, REQUESTS[method]())
    stub = server.models if method == "GetModelStatus" else server.predictions
    return getattr(stub, method)(request, timeout=20)


@pytest.mark.parametrize(
    ("method", "request_text", "code", "message"),
    [
        ("GetModelStatus", 'model_spec { name: "nope" }', "NOT_FOUND", "Could not find any versions of model nope"),
        (
            "GetModelStatus",
            'model_spec { name: "nope" version { value: 1 } }',
            "NOT_FOUND",
            "Could not find version 1 of model nope",
        ),
        (
            "GetModelStatus",
            'model_spec { name: "hpt" version { value: 9 } }',
            "NOT_FOUND",
            "Could not find version 9 of model hpt",
        ),
        ("GetModelStatus", "", "INVALID_ARGUMENT", "Missing ModelSpec"),
        ("GetModelStatus", "model_spec { }", "NOT_FOUND", "Could not find any versions of model "),
        ("Predict", 'model_spec { name: "nope" }', "NOT_FOUND", "Servable not found for request: Latest(nope)"),
        (
            "Predict",
            'model_spec { name: "nope" version { value: 3 } }',
            "NOT_FOUND",
            "Servable not found for request: Specific(nope, 3)",
        ),
        (
            "Predict",
            f'model_spec {{ name: "hpt" version {{ value: 9 }} }} {X}',
            "NOT_FOUND",
            "Servable not found for request: Specific(hpt, 9)",
        ),
        (
            "Predict",
            f'model_spec {{ name: "hpt" version_label: "stable" }} {X}',
            "INVALID_ARGUMENT",
            "Unrecognized servable version label: stable",
        ),
        (
            "Predict",
            'model_spec { name: "nope" version_label: "canary" }',
            "INVALID_ARGUMENT",
            "Unrecognized servable version label: canary",
        ),
        ("Predict", "", "INVALID_ARGUMENT", "Missing ModelSpec"),
        ("Predict", "model_spec { }", "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        (
            "Predict",
            HPT.replace('key: "x"', 'key: "zzz"'),
            "INVALID_ARGUMENT",
            "Signature input alias: x(feed name: x:0) not found in request and no default value provided. Inputs "
            "expected to be in the request {zzz}, or default input alias set: ",
        ),
        (
            "Predict",
            HPT.replace("model_spec {", 'model_spec { signature_name: "nosig"'),
            "FAILED_PRECONDITION",
            'Serving signature key "nosig" not found.',
        ),
        (
            "Predict",
            HPT.replace("DT_FLOAT", "DT_INT32"),
            "INVALID_ARGUMENT",
            "Expects arg[0] to be float but int32 is provided",
        ),
        ("Predict", HPT.replace("float_val: 1", "tensor_content: '1'"), "INVALID_ARGUMENT", "tensor parsing error: x"),
        (
            "Predict",
            'model_spec { name: "hpt" }',
            "INVALID_ARGUMENT",
            "input size does not match signature: 0!=1 len({}) != len({x}). Sent extra: {}. Missing but required: {x}.",
        ),
        (
            "Predict",
            f'{HPT} output_filter: "z"',
            "INVALID_ARGUMENT",
            "output tensor alias not found in signature: z Outputs expected to be in the set {y}.",
        ),
        (
            "GetModelMetadata",
            'model_spec { name: "nope" } metadata_field: "signature_def"',
            "NOT_FOUND",
            "Servable not found for request: Latest(nope)",
        ),
        (
            "GetModelMetadata",
            'model_spec { name: "hpt" version { value: 9 } } metadata_field: "signature_def"',
            "NOT_FOUND",
            "Servable not found for request: Specific(hpt, 9)",
        ),
        (
            "GetModelMetadata",
            'model_spec { name: "hpt" }',
            "INVALID_ARGUMENT",
            "GetModelMetadataRequest must specify at least one metadata_field",
        ),
        (
            "GetModelMetadata",
            'model_spec { name: "hpt" } metadata_field: "foo"',
            "INVALID_ARGUMENT",
            "Metadata field foo is not supported",
        ),
        ("Regress", 'model_spec { name: "examples" }', "INVALID_ARGUMENT", "Input is empty."),
        (
            "Classify",
            f'model_spec {{ name: "examples" }} {EXAMPLES}',
            "INVALID_ARGUMENT",
            "Expected classification signature method_name to be tensorflow/serving/classify. Was: "
            "tensorflow/serving/regress",
        ),
    ],
)
def test_errors(answering: ModelServer, method: str, request_text: str, code: str, message: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        ask(answering, method, request_text)
    assert (caught.value.code().name, caught.value.details()) == (code, message)


def test_missing_variables_are_only_seen_by_predict(answering: ModelServer) -> None:
    assert "AVAILABLE" in str(ask(answering, "GetModelStatus", 'model_spec { name: "novars" }'))
    with pytest.raises(grpc.RpcError) as caught:
        ask(answering, "Predict", HPT.replace("hpt", "novars"))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert caught.value.details().startswith("Could not find variable b. ")


@pytest.mark.parametrize(
    ("choice", "y", "version"),
    [("", 3.5, 2), ("version { value: 1 }", 2.5, 1), ('version_label: "canary"', 2.5, 1)],
)
def test_predict_answers_with_the_resolved_version(answering: ModelServer, choice: str, y: float, version: int) -> None:
    response = ask(answering, "Predict", f'model_spec {{ name: "hpt" {choice} }} {X}')
    assert list(response.outputs["y"].float_val) == [y]
    expected = f'name: "hpt" version {{ value: {version} }} signature_name: "serving_default"'
    assert response.model_spec == text_format.Parse(expected, type(response.model_spec)())


def test_rank_is_not_checked(answering: ModelServer) -> None:
    response = ask(answering, "Predict", HPT.replace("dim { size: 1 }", "dim { size: 1 } dim { size: 1 }"))
    assert [dim.size for dim in response.outputs["y"].tensor_shape.dim] == [1, 1]


def test_status_lists_newest_first_and_ignores_labels(answering: ModelServer) -> None:
    for label in ("", 'version_label: "nonsense"'):
        response = ask(answering, "GetModelStatus", f'model_spec {{ name: "hpt" {label} }}')
        assert [(one.version, one.state) for one in response.model_version_status] == [(2, 30), (1, 30)]
    one = ask(answering, "GetModelStatus", 'model_spec { name: "hpt" version { value: 1 } }')
    assert [status.version for status in one.model_version_status] == [1]


def test_metadata(answering: ModelServer) -> None:
    response = ask(answering, "GetModelMetadata", 'model_spec { name: "hpt" } metadata_field: "signature_def"')
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert signatures.signature_def["serving_default"].inputs["x"].dtype == types_pb2.DT_FLOAT
    assert (response.model_spec.version.value, response.model_spec.signature_name) == (2, "")


def test_default_inputs_and_output_filter(answering: ModelServer) -> None:
    both = ask(answering, "Predict", HPT.replace("hpt", "defaulted")).outputs
    assert {alias: list(tensor.float_val) for alias, tensor in both.items()} == {"y": [101], "also": [1]}
    one = ask(answering, "Predict", HPT.replace("hpt", "defaulted") + 'output_filter: "also"').outputs
    assert list(one) == ["also"]


def test_classify_and_regress(answering: ModelServer) -> None:
    regressed = ask(answering, "Regress", f'model_spec {{ name: "examples" }} {EXAMPLES}')
    assert [one.value for one in regressed.result.regressions] == [3.5]
    assert regressed.model_spec.signature_name == "serving_default"
    merged = ask(answering, "Regress", f'model_spec {{ name: "examples" }} {WITH_CONTEXT}')
    assert [one.value for one in merged.result.regressions] == [4.5, 5.5]
    spec = 'model_spec { name: "examples" signature_name: "classify" }'
    classified = ask(answering, "Classify", f"{spec} {EXAMPLES}").result.classifications
    assert [[(one.label, one.score) for one in row.classes] for row in classified] == [[("3.0", 3.0)]]


@pytest.mark.parametrize("size", [200, 600 * 1024, 8 << 20])
def test_bodies_come_back_bit_equal(answering: ModelServer, size: int) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    for model, dtype in (("strings", "DT_STRING"), ("floats", "DT_FLOAT"), ("echo", "DT_UINT8")):
        if model == "echo" and size > 1 << 20:
            continue  # the official client's own decoding of so many varints takes seconds
        request = predict_request(model, [0.0])
        tensor = request.inputs["x"]
        tensor.Clear()
        tensor.dtype = types_pb2.DataType.Value(dtype)
        if model == "strings":
            tensor.string_val.append(content)
        else:
            numbers = size // 4 if model == "floats" else size
            tensor.tensor_shape.dim.add(size=numbers)
            tensor.tensor_content = struct.pack("<f", 1.5) * numbers if model == "floats" else content[:size]
        answer = answering.predictions.Predict(request, timeout=60).outputs["y"]
        if model == "strings":
            assert answer.string_val[0] == content
        elif model == "floats":
            assert list(answer.float_val) == [1.5] * numbers
        else:
            assert bytes(answer.int_val) == content[:size]


def test_gzip_request(answering: ModelServer) -> None:
    response = answering.predictions.Predict(
        predict_request("hpt", [1.0] * 1000), timeout=10, compression=grpc.Compression.Gzip
    )
    assert len(response.outputs["y"].float_val) == 1000


def test_garbage_and_unknown_methods(answering: ModelServer) -> None:
    for method, body in (("Predict", b"\xff\xff"), ("MultiInference", b""), ("Nonsense", b"")):
        with pytest.raises(grpc.RpcError) as caught:
            answering.channel.unary_unary(f"/tensorflow.serving.PredictionService/{method}")(body, timeout=10)
        expected = grpc.StatusCode.INTERNAL if method == "Predict" else grpc.StatusCode.UNIMPLEMENTED
        assert caught.value.code() is expected


def test_slow_requests_run_side_by_side_and_hold_up_nothing(answering: ModelServer) -> None:
    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(answering.predict, "slow", 1.0) for _ in range(8)]
        assert answering.predict("hpt", 1.0) == 3.5
        ask(answering, "GetModelStatus", 'model_spec { name: "slow" }')
        assert not any(future.done() for future in running)
        assert [future.result() for future in running] == [2.5] * 8
    # One after the other would be 8 s.
    assert time.monotonic() - began < 5


def test_deadline_is_kept_and_the_server_goes_on(answering: ModelServer) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        answering.predict("slow", 1.0, timeout=0.05)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert answering.predict("slow", 1.0) == 2.5


def test_health(answering: ModelServer) -> None:
    stub = health_pb2_grpc.HealthStub(answering.channel)
    for name in ("", "ModelService", "PredictionService"):
        assert stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10).status == 1
    for name in ("hpt", "tensorflow.serving.PredictionService"):
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
        assert (caught.value.code().name, caught.value.details()) == ("NOT_FOUND", "service name unknown")
