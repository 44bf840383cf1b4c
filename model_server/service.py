"""The calls of PredictionService and ModelService, apart from any transport: gRPC and REST both end here.

Invariant: every function takes a request message, returns its response message or raises ServingError, and may be
called by many threads at once. `timeout` is what is left of the client's deadline in seconds, None for no deadline.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from model_server import inference
from model_server.errors import invalid
from model_server.lifecycle import Event
from model_server.messages import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    regression_pb2,
)
from model_server.models import Models
from model_server.saved_model import SavedModel


def _fill_spec(spec: Any, request: Any, version: int) -> None:
    spec.name, spec.version.value = request.model_spec.name, version
    spec.signature_name = request.model_spec.signature_name or inference.DEFAULT_SIGNATURE


def predict(models: Models, request: Any, timeout: float | None) -> Any:
    """PredictionService.Predict."""
    with models.acquire(request) as (version, model):
        response = inference.predict(model, request, timeout)
    _fill_spec(response.model_spec, request, version)
    return response


def classify(models: Models, request: Any, timeout: float | None) -> Any:
    """PredictionService.Classify."""
    response = classification_pb2.ClassificationResponse()
    _examples(models, request, timeout, response, inference.classify)
    return response


def regress(models: Models, request: Any, timeout: float | None) -> Any:
    """PredictionService.Regress."""
    response = regression_pb2.RegressionResponse()
    _examples(models, request, timeout, response, inference.regress)
    return response


def _examples(
    models: Models,
    request: Any,
    timeout: float | None,
    response: Any,
    run: Callable[[SavedModel, Any, float | None], Any],
) -> None:
    with models.acquire(request) as (version, model):
        response.result.CopyFrom(run(model, request, timeout))
    _fill_spec(response.model_spec, request, version)


def get_model_metadata(models: Models, request: Any, _timeout: float | None) -> Any:
    """PredictionService.GetModelMetadata; `signature_def` is the only field there is."""
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    if not request.metadata_field:
        raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
    for name in request.metadata_field:
        if name != "signature_def":
            raise invalid(f"Metadata field {name} is not supported")
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    with models.acquire(request) as (version, model):
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for name, signature in model.signatures.items():
            signatures.signature_def[name].CopyFrom(signature)
    response.metadata["signature_def"].Pack(signatures)
    response.model_spec.name, response.model_spec.version.value = request.model_spec.name, version
    return response


def get_model_status(models: Models, request: Any, _timeout: float | None) -> Any:
    """ModelService.GetModelStatus."""
    response = get_model_status_pb2.GetModelStatusResponse()
    for event in models.statuses(request):
        _fill_status(response.model_version_status.add(), event)
    return response


def _fill_status(status: Any, event: Event) -> None:
    status.version, status.state = event.version, int(event.state)
    # Set even when there is no error: JSON shows `"error_code": "OK"`.
    status.status.error_code = int(event.error.code) if event.error else 0
    status.status.error_message = event.error.message if event.error else ""


def handle_reload_config(models: Models, request: Any, _timeout: float | None) -> Any:
    """ModelService.HandleReloadConfigRequest. Goes on past the client's deadline, as TF Serving's does."""
    if request.config.WhichOneof("config") != "model_config_list":
        raise invalid(
            "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently "
            "supported"
        )
    models.reload(request.config)
    response = model_management_pb2.ReloadConfigResponse()
    response.status.error_code = 0
    return response
