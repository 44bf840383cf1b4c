"""The REST API of one real server. Waits for the server's ports to open."""

from __future__ import annotations

import gzip
import http.client
import json
from typing import Any

import pytest

from tests.support.model_server import ModelServer

pytestmark = pytest.mark.scenario


def rest(server: ModelServer, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=20)
    try:
        connection.request(method, path, body if isinstance(body, bytes | type(None)) else json.dumps(body), headers)
        response = connection.getresponse()
        raw = response.read()
        is_json = response.headers["Content-Type"] == "application/json" and path.startswith("/v1/")
        return response.status, json.loads(raw) if is_json else raw
    finally:
        connection.close()


AVAILABLE = {"state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}


@pytest.mark.parametrize(
    ("path", "versions"),
    [("hpt", ["2", "1"]), ("hpt/versions/1", ["1"]), ("hpt/labels/nonsense", ["2", "1"])],
)
def test_status(answering: ModelServer, path: str, versions: list[str]) -> None:
    expected = {"model_version_status": [{"version": version, **AVAILABLE} for version in versions]}
    assert rest(answering, "GET", f"/v1/models/{path}") == (200, expected)


@pytest.mark.parametrize(
    ("path", "body", "answer"),
    [
        ("hpt", {"instances": [1.0, 0.3, 2]}, {"predictions": [3.5, 3.15, 4.0]}),
        ("hpt", {"instances": [{"x": 1.0}]}, {"predictions": [3.5]}),
        ("hpt", {"inputs": [1.0]}, {"outputs": [3.5]}),
        ("hpt", {"inputs": {"x": [[1.0], [2.0]]}}, {"outputs": [[3.5], [4.0]]}),
        ("hpt", {"signature_name": "serving_default", "instances": [1.0]}, {"predictions": [3.5]}),
        ("hpt/versions/1", {"instances": [1.0]}, {"predictions": [2.5]}),
        ("hpt/labels/canary", {"instances": [1.0]}, {"predictions": [2.5]}),
        ("strings", {"instances": ["a", {"b64": "Yg=="}]}, {"predictions": ["a", "b"]}),
        ("echo", {"instances": [[1, 255], [0, 128]]}, {"predictions": [[1, 255], [0, 128]]}),
        (
            "defaulted",
            {"instances": [{"x": 1.0, "extra": 100}, {"x": 2.0, "extra": 100}]},
            {"predictions": [{"y": 101.0, "also": 1.0}, {"y": 102.0, "also": 2.0}]},
        ),
        (
            "defaulted",
            {"inputs": {"x": [1.0], "extra": 1.5}},
            {"outputs": {"y": [2.5], "also": [1.0]}},
        ),
    ],
)
def test_predict(answering: ModelServer, path: str, body: Any, answer: Any) -> None:
    assert rest(answering, "POST", f"/v1/models/{path}:predict", body) == (200, answer)


def test_classify_and_regress(answering: ModelServer) -> None:
    rows = {"examples": [{"x": 1.0}, {"x": [2.5]}]}
    assert rest(answering, "POST", "/v1/models/examples:regress", rows) == (200, {"results": [2.5, 3.25]})
    context = {"context": {"x": 7.0}, "examples": [{}]}
    assert rest(answering, "POST", "/v1/models/examples:regress", context) == (200, {"results": [5.5]})
    named = {"signature_name": "classify", **rows}
    expected = {"results": [[["1.0", 1.0]], [["2.5", 2.5]]]}
    assert rest(answering, "POST", "/v1/models/examples:classify", named) == (200, expected)


@pytest.mark.parametrize(
    ("method", "path", "body", "code", "error"),
    [
        ("GET", "/v1/models/nope", None, 404, "Could not find any versions of model nope"),
        ("GET", "/v1/models/hpt/versions/9", None, 404, "Could not find version 9 of model hpt"),
        ("GET", "/v1/models", None, 400, "Missing model name in request."),
        ("GET", "/v1/models/hpt:predict", None, 400, "Malformed request: GET /v1/models/hpt:predict"),
        ("POST", "/v1/models/hpt", {}, 400, "Malformed request: POST /v1/models/hpt"),
        ("POST", "/v1/nonsense", {}, 400, "Malformed request: POST /v1/nonsense"),
        (
            "POST",
            "/v1/models/nope:predict",
            {"instances": [1]},
            404,
            "Servable not found for request: Latest(nope)",
        ),
        (
            "POST",
            "/v1/models/hpt/versions/9:predict",
            {"instances": [1]},
            404,
            "Servable not found for request: Specific(hpt, 9)",
        ),
        (
            "POST",
            "/v1/models/hpt/labels/x:predict",
            {"instances": [1]},
            400,
            "Unrecognized servable version label: x",
        ),
        ("POST", "/v1/models/hpt:predict", b"", 400, "JSON Parse error: The document is empty"),
        ("POST", "/v1/models/hpt:predict", b"{]", 400, "JSON Parse error: Invalid value. at offset: 1"),
        ("POST", "/v1/models/hpt:predict", {}, 400, "Missing 'inputs' or 'instances' key"),
        (
            "POST",
            "/v1/models/hpt:predict",
            {"instances": ["a"]},
            400,
            "Failed to process element: 0 of 'instances' list. Error: INVALID_ARGUMENT: JSON Value: \"a\" "
            "Type: String is not of expected type: float",
        ),
        (
            "POST",
            "/v1/models/hpt:predict",
            {"inputs": ["a"]},
            400,
            'JSON Value: "a" Type: String is not of expected type: float',
        ),
        (
            "POST",
            "/v1/models/defaulted:predict",
            {"inputs": {"x": [1.0]}},
            400,
            "Missing named input: extra in 'inputs' object.",
        ),
        (
            "POST",
            "/v1/models/hpt:predict",
            {"inputs": [2**24]},
            400,
            "Cannot convert JSON value: 16777216 to float without loss of precision.",
        ),
        (
            "POST",
            "/v1/models/hpt:predict",
            {"signature_name": "nosig", "instances": [1]},
            400,
            'Serving signature name: "nosig" not found in signature def',
        ),
    ],
)
def test_errors(answering: ModelServer, method: str, path: str, body: Any, code: int, error: str) -> None:
    assert rest(answering, method, path, body) == (code, {"error": error})


@pytest.mark.parametrize(
    "body",
    [
        {"instances": []},
        {"instances": 1},
        {"instances": [[1.0], [1.0, 2.0]]},
        {"instances": [{"x": 1.0}, {"z": 1.0}]},
        {"inputs": {"z": [1.0]}},
        {"inputs": [1.0], "instances": [1.0]},
        {"instances": [True]},
        {"instances": [None]},
    ],
)
def test_wrong_shapes_and_types_are_bad_requests(answering: ModelServer, body: Any) -> None:
    code, answer = rest(answering, "POST", "/v1/models/hpt:predict", body)
    assert code == 400
    assert answer["error"]


def test_metadata(answering: ModelServer) -> None:
    code, answer = rest(answering, "GET", "/v1/models/hpt/versions/1/metadata")
    assert code == 200
    assert answer["model_spec"] == {"name": "hpt", "signature_name": "", "version": "1"}
    signature = answer["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["x"]["dtype"] == "DT_FLOAT"


def test_not_under_v1(answering: ModelServer) -> None:
    assert rest(answering, "GET", "/")[0] == 404


def test_gzip_chunks_and_keep_alive_on_one_connection(answering: ModelServer) -> None:
    body = json.dumps({"instances": [1.0] * 1000}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", answering.rest_port, timeout=20)
    try:
        for sent, headers in (
            (gzip.compress(body), {"Content-Encoding": "gzip"}),
            (iter([body[:100], body[100:]]), {"Transfer-Encoding": "chunked"}),
            (body, {}),
        ):
            connection.request(
                "POST", "/v1/models/hpt:predict", sent, headers, encode_chunked="Transfer-Encoding" in headers
            )
            socket = connection.sock
            response = connection.getresponse()
            assert json.loads(response.read()) == {"predictions": [3.5] * 1000}
            assert connection.sock is socket
    finally:
        connection.close()
