"""Predict, Classify, Regress on one loaded SavedModel. Invariant: no I/O and no knowledge of versions or transports.

Checks, their order and their texts follow TF Serving's predict_util.cc, classifier.cc and regressor.cc. All functions
raise ServingError and may be called by many threads at once. `timeout` is in seconds, None for no deadline.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from model_server.errors import Code, ServingError, invalid
from model_server.libtensorflow import DT_STRING, Tensor
from model_server.messages import classification_pb2, example_pb2, predict_pb2, regression_pb2
from model_server.saved_model import SavedModel
from model_server.tensors import decode_tensor, encode_tensor, to_array

DEFAULT_SIGNATURE = "serving_default"
CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"


def predict_tensors(model: SavedModel, request: Any, timeout: float | None = None) -> dict[str, Tensor]:
    """Run a PredictRequest; the outputs by alias."""
    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    signature = model.signatures.get(name)
    if signature is None:
        raise ServingError(Code.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
    feeds = _feeds(signature, request)
    aliases = list(request.output_filter) or list(signature.outputs)
    for place, alias in enumerate(aliases):
        if alias not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in the set "
                f"{_braced(signature.outputs)}."
            )
        if alias in aliases[:place]:
            raise invalid(f"duplicate output tensor alias: {alias}")
    results = model.session.run(feeds, [signature.outputs[alias].name for alias in aliases], timeout)
    return dict(zip(aliases, results, strict=True))


def predict(model: SavedModel, request: Any, timeout: float | None = None) -> Any:
    """Run a PredictRequest; a PredictResponse without its model_spec."""
    response = predict_pb2.PredictResponse()
    for alias, tensor in predict_tensors(model, request, timeout).items():
        encode_tensor(tensor, response.outputs[alias])
    return response


def _feeds(signature: Any, request: Any) -> list[tuple[str, Tensor]]:
    sent, known, defaults = set(request.inputs), set(signature.inputs), set(signature.defaults)
    if len(sent) != len(known) and (not defaults or len(sent) > len(known)):
        raise invalid(
            f"input size does not match signature: {len(sent)}!={len(known)} len({_braced(sent)}) != "
            f"len({_braced(known)}). Sent extra: {_braced(sent - known)}. "
            f"Missing but required: {_braced(known - sent)}."
        )
    feeds = []
    for alias, info in signature.inputs.items():
        if alias not in sent and alias not in defaults:
            raise invalid(
                f"Signature input alias: {alias}(feed name: {info.name}) not found in request and no default value "
                f"provided. Inputs expected to be in the request {_braced(sent)}, or default input alias set: "
                f"{','.join(sorted(defaults))}"
            )
        tensor = decode_tensor(request.inputs[alias] if alias in sent else signature.defaults[alias])
        if tensor is None:
            raise invalid(f"tensor parsing error: {alias}")
        feeds.append((info.name, tensor))
    return feeds


def _braced(names: Iterable[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"


def classify(model: SavedModel, request: Any, timeout: float | None = None) -> Any:
    """Run a ClassificationRequest; a ClassificationResult."""
    outputs, count = _run_examples(model, request, CLASSIFY, ("classes", "scores"), timeout)
    result = classification_pb2.ClassificationResult()
    columns = next(iter(outputs.values())).shape[1]
    for row in range(count):
        classes = result.classifications.add().classes
        for column in range(columns):
            one = classes.add()
            if "classes" in outputs:
                one.label = outputs["classes"][row][column]
            if "scores" in outputs:
                one.score = float(outputs["scores"][row][column])
    return result


def regress(model: SavedModel, request: Any, timeout: float | None = None) -> Any:
    """Run a RegressionRequest; a RegressionResult."""
    outputs, _ = _run_examples(model, request, REGRESS, ("outputs",), timeout)
    result = regression_pb2.RegressionResult()
    for value in outputs["outputs"].reshape(-1):
        result.regressions.add(value=float(value))
    return result


def _run_examples(
    model: SavedModel, request: Any, method: str, wanted: Sequence[str], timeout: float | None
) -> tuple[dict[str, Any], int]:
    kind = "classification" if method == CLASSIFY else "regression"
    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    signature = model.signatures.get(name)
    if signature is None:
        raise invalid(f"No signature was found with the name: {name}")
    if signature.method_name != method:
        raise invalid(f"Expected {kind} signature method_name to be {method}. Was: {signature.method_name}")
    if list(signature.inputs) != ["inputs"]:
        raise invalid(f"No {kind} inputs found in SignatureDef: {signature}")
    aliases = [alias for alias in wanted if alias in signature.outputs]
    if not aliases:
        raise invalid(f"No {kind} outputs found in SignatureDef: {signature}")
    examples = serialized_examples(request.input)
    feed = (signature.inputs["inputs"].name, Tensor(DT_STRING, (len(examples),), examples))
    tensors = model.session.run([feed], [signature.outputs[alias].name for alias in aliases], timeout)
    arrays = {alias: to_array(tensor) for alias, tensor in zip(aliases, tensors, strict=True)}
    for alias, array in arrays.items():
        dimensions = (1, 2) if method == REGRESS else (2,)
        if array.ndim not in dimensions or array.shape[0] != len(examples):
            raise invalid(
                f"Expected output {alias!r} to have one row for each of {len(examples)} examples, got {array.shape}"
            )
    return arrays, len(examples)


def serialized_examples(asked: Any) -> list[bytes]:
    """The serialised tf.Examples of an Input, the context merged into each. Raises ServingError if there are none."""
    if asked.WhichOneof("kind") == "example_list_with_context":
        examples = []
        for example in asked.example_list_with_context.examples:
            merged = example_pb2.Example()
            merged.CopyFrom(asked.example_list_with_context.context)
            merged.MergeFrom(example)
            examples.append(merged.SerializeToString())
    else:
        examples = [example.SerializeToString() for example in asked.example_list.examples]
    if not examples:
        raise invalid("Input is empty.")
    return examples


def replay(model: SavedModel, log: Any) -> None:
    """Ask what a warm-up record asks; its model_spec's name and version don't matter."""
    match log.WhichOneof("log_type"):
        case "predict_log":
            predict(model, log.predict_log.request)
        case "classify_log":
            classify(model, log.classify_log.request)
        case "regress_log":
            regress(model, log.regress_log.request)
        case kind:
            raise ServingError(Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {kind}")
