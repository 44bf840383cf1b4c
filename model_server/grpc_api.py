"""The gRPC port. Invariant: a call that blocks (a reload, a slow model) takes one thread and holds up no other call."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from model_server import service
from model_server.errors import Code, ServingError
from model_server.messages import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    predict_pb2,
    regression_pb2,
)
from model_server.metrics import Metrics
from model_server.models import Models

# Started one by one as calls run at the same time; TF Serving's own server has no limit.
MAX_THREADS = 512
NO_DEADLINE = 1e6  # seconds
MESSAGE_LIMIT = 1024  # grpc_status_util.cc
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
]
_STATUS = {code.value[0]: code for code in grpc.StatusCode}

Call = Callable[[Models, Any, float | None], Any]
_METHODS: dict[str, dict[str, tuple[Call, Any]]] = {
    "tensorflow.serving.PredictionService": {
        "Predict": (service.predict, predict_pb2.PredictRequest),
        "Classify": (service.classify, classification_pb2.ClassificationRequest),
        "Regress": (service.regress, regression_pb2.RegressionRequest),
        "GetModelMetadata": (service.get_model_metadata, get_model_metadata_pb2.GetModelMetadataRequest),
    },
    "tensorflow.serving.ModelService": {
        "GetModelStatus": (service.get_model_status, get_model_status_pb2.GetModelStatusRequest),
        "HandleReloadConfigRequest": (service.handle_reload_config, model_management_pb2.ReloadConfigRequest),
    },
}
COUNTED = frozenset({"Predict", "Classify", "Regress"})
HEALTHY_SERVICES = ("", "ModelService", "PredictionService")


def serve(
    models: Models, address: str, arguments: list[tuple[str, str | int]], metrics: Metrics, *, health: bool
) -> grpc.Server:
    """Open the port and return the running server. Raises RuntimeError if the port is taken."""
    # TF Serving's own options last: a repeated key's last value counts.
    server = grpc.server(ThreadPoolExecutor(MAX_THREADS, "grpc"), options=[*_OPTIONS, *arguments])
    handlers = [
        grpc.method_handlers_generic_handler(
            name,
            {
                method: _handler(models, call, request, _counting(metrics, method))
                for method, (call, request) in methods.items()
            },
        )
        for name, methods in _METHODS.items()
    ]
    server.add_generic_rpc_handlers(handlers)
    if health:
        _add_health(server)
    if not server.add_insecure_port(address):
        raise RuntimeError(f"{address} is taken")
    server.start()
    return server


def _counting(metrics: Metrics, method: str) -> Callable[[Any, str, float], None]:
    def count(request: Any, status: str, began: float) -> None:
        if method in COUNTED:
            metrics.ended(request.model_spec.name, method, "GRPC", status, time.perf_counter() - began)

    return count


def _handler(
    models: Models, call: Call, request_type: Any, count: Callable[[Any, str, float], None]
) -> grpc.RpcMethodHandler[Any, Any]:
    def answer(raw: bytes, context: grpc.ServicerContext) -> bytes:
        began = time.perf_counter()
        request = request_type()
        try:
            request.ParseFromString(raw)
            # Without a deadline, gRPC for Python says some centuries.
            left = context.time_remaining()
            timeout = left if left is not None and left < NO_DEADLINE else None
            result: bytes = call(models, request, timeout).SerializeToString()
            count(request, "OK", began)
        except ServingError as error:
            count(request, error.code.name, began)
            message = error.message
            if len(message) > MESSAGE_LIMIT:
                message = message[:MESSAGE_LIMIT] + "...TRUNCATED"
            context.abort(_STATUS[error.code], message)
        except DecodeError as error:
            context.abort(_STATUS[Code.INTERNAL], str(error))
        return result

    return grpc.unary_unary_rpc_method_handler(answer)


def _add_health(server: grpc.Server) -> None:
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc

    class Health(health.HealthServicer):  # type: ignore[misc]
        """As gRPC's C++ health service: set once at the start, unknown names are NOT_FOUND with a text."""

        def Check(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
            if request.service not in HEALTHY_SERVICES:
                context.abort(grpc.StatusCode.NOT_FOUND, "service name unknown")
            return super().Check(request, context)

    servicer = Health()
    for name in HEALTHY_SERVICES:
        servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
