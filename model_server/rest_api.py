"""The REST port: TF Serving's http_rest_api_handler.cc on the standard library's HTTP server.

Invariant: every answer under /v1/ is JSON; an error is `{ "error": "…" }` with the HTTP code of its canonical code.
Beside /v1/ there may be a page of metrics.
"""

from __future__ import annotations

import gzip
import json
import logging
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from google.protobuf import json_format

from model_server import inference, rest_json, service
from model_server.errors import Code, ServingError, invalid
from model_server.messages import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
    regression_pb2,
)
from model_server.metrics import Metrics
from model_server.models import Models

log = logging.getLogger(__name__)

# util/net_http and http_server.cc; whatever is not listed is 500.
_HTTP = {
    Code.CANCELLED: 499,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.UNAUTHENTICATED: 401,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
}
_CHOICE = r"(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_ASK = re.compile(rf"/v1/models/(?P<name>[^/:]+){_CHOICE}:(?P<method>classify|regress|predict)", re.IGNORECASE)
_STATUS = re.compile(rf"/v1/models(?:/(?P<name>[^/:]+))?{_CHOICE}(?P<metadata>/metadata)?", re.IGNORECASE)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], rest: Rest) -> None:
        self.rest = rest
        super().__init__(address, _Handler)


def serve(models: Models, host: str, port: int, timeout: float, metrics: Metrics) -> None:
    """Open the port and return; one daemon thread per connection. Raises RuntimeError if the port is taken."""
    try:
        server = _Server((host, port), Rest(models, timeout, metrics))
    except OSError as error:
        raise RuntimeError(f"{host}:{port} is taken ({error.strerror})") from error
    threading.Thread(target=server.serve_forever, name="rest", daemon=True).start()


class Rest:
    """A method, a path and a body in; a code and a body out."""

    def __init__(self, models: Models, timeout: float, metrics: Metrics) -> None:
        self._models, self._timeout = models, timeout
        self.metrics = metrics

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """Answer one request; errors too."""
        path = urlsplit(path).path
        if not path.lower().startswith("/v1/"):
            return 404, b"Not Found"
        try:
            if method == "POST" and (asked := _ASK.fullmatch(path)):
                return 200, self._counted(asked, body)
            if method == "GET" and (asked := _STATUS.fullmatch(path)):
                return 200, self._describe(asked)
            raise invalid(f"Malformed request: {method} {path}")
        except ServingError as error:
            return _HTTP.get(error.code, 500), rest_json.error_body(error)
        except Exception as error:
            log.exception("REST: %s %s", method, path)
            return 500, rest_json.error_body(ServingError(Code.INTERNAL, f"{type(error).__name__}: {error}"))

    def _describe(self, asked: re.Match[str]) -> bytes:
        if not asked["name"]:
            raise invalid("Missing model name in request.")
        if not asked["metadata"]:
            request = get_model_status_pb2.GetModelStatusRequest()
            _fill_spec(request.model_spec, asked)
            return _json(service.get_model_status(self._models, request, None)).encode()
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        _fill_spec(request.model_spec, asked)
        response = service.get_model_metadata(self._models, request, None)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        spec = _json(response.model_spec)
        return f'{{\n"model_spec":{spec}\n,\n"metadata": {{"signature_def": {_json(signatures)}\n}}\n}}\n'.encode()

    def _counted(self, asked: re.Match[str], body: bytes) -> bytes:
        began, status = time.perf_counter(), "INTERNAL"
        try:
            answer = self._ask(asked, body)
            status = "OK"
            return answer
        except ServingError as error:
            status = error.code.name
            raise
        finally:
            name, api = unquote(asked["name"]), asked["method"].lower()
            self.metrics.ended(name, api, "REST", status, time.perf_counter() - began)

    def _ask(self, asked: re.Match[str], body: bytes) -> bytes:
        document = rest_json.parse_body(body)
        signature = document.get("signature_name", "")
        if not isinstance(signature, str):
            raise invalid("'signature_name' key must be a string value.")
        call = {"predict": self._predict, "classify": self._classify, "regress": self._regress}[asked["method"].lower()]
        # Pretty-printed around, but the (possibly large) value in one line.
        [(key, value)] = call(asked, signature, document).items()
        return f'{{\n    "{key}": {json.dumps(value, ensure_ascii=False)}\n}}'.encode()

    def _predict(self, asked: re.Match[str], signature: str, document: dict[str, Any]) -> dict[str, Any]:
        spec_only = predict_pb2.PredictRequest()
        _fill_spec(spec_only.model_spec, asked)
        with self._models.acquire(spec_only) as (_, model):
            name = signature or inference.DEFAULT_SIGNATURE
            if name not in model.signatures:
                raise invalid(f'Serving signature name: "{name}" not found in signature def')
            request, rows = rest_json.predict_request(document, model.signatures[name].inputs)
            request.model_spec.signature_name = name
            outputs = inference.predict_tensors(model, request, self._timeout)
        return rest_json.predict_response(outputs, rows=rows)

    def _classify(self, asked: re.Match[str], signature: str, document: dict[str, Any]) -> dict[str, Any]:
        request = classification_pb2.ClassificationRequest()
        _fill_spec(request.model_spec, asked, signature)
        rest_json.fill_input(document, request.input)
        result = service.classify(self._models, request, self._timeout).result
        return {
            "results": [[[one.label, _shortest(one.score)] for one in row.classes] for row in result.classifications]
        }

    def _regress(self, asked: re.Match[str], signature: str, document: dict[str, Any]) -> dict[str, Any]:
        request = regression_pb2.RegressionRequest()
        _fill_spec(request.model_spec, asked, signature)
        rest_json.fill_input(document, request.input)
        result = service.regress(self._models, request, self._timeout).result
        return {"results": [_shortest(one.value) for one in result.regressions]}


def _fill_spec(spec: Any, asked: re.Match[str], signature: str = "") -> None:
    spec.name, spec.signature_name = unquote(asked["name"]), signature
    if asked["version"]:
        if int(asked["version"]) >= 2**63:
            raise invalid(f"Failed to convert version: {asked['version']} to numeric.")
        spec.version.value = int(asked["version"])
    elif asked["label"]:
        spec.version_label = unquote(asked["label"])


def _shortest(value: float) -> float:
    return float(f"{value:.7g}")


def _json(message: Any) -> str:
    text: str = json_format.MessageToJson(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True, indent=1
    )
    return text + "\n"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body in one packet
    server: _Server

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_DELETE = do_PATCH = do_GET  # noqa: N815

    def _answer(self) -> None:
        metrics = self.server.rest.metrics
        kind = "application/json"
        body = self._body()
        if metrics.path and urlsplit(self.path).path == metrics.path:
            code, answer, kind = 200, metrics.page(), "text/plain"
        elif body is None:
            self.close_connection = True
            code, answer = 400, rest_json.error_body(invalid("Malformed request: the body can't be read"))
        else:
            code, answer = self.server.rest.answer(self.command, self.path, body)
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def _body(self) -> bytes | None:
        try:
            if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                body = self._chunks()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        except (ValueError, OSError, EOFError):
            return None

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return b"".join(parts)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """No access log, as in TF Serving."""
