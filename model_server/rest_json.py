"""REST's JSON to request messages and back: TF Serving's json_tensor.cc.

Invariant: a value is taken only if its JSON type fits the signature's dtype; nothing is rounded or cut on the way in.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from model_server.errors import ServingError, invalid
from model_server.libtensorflow import DT_STRING, Tensor
from model_server.messages import input_pb2, predict_pb2, types_pb2
from model_server.tensors import KINDS, to_array

_FLOATS = {types_pb2.DT_FLOAT, types_pb2.DT_DOUBLE, types_pb2.DT_HALF, types_pb2.DT_BFLOAT16}


def parse_body(body: bytes) -> dict[str, Any]:
    """The JSON object of a request body. Raises ServingError."""
    if not body.strip():
        raise invalid("JSON Parse error: The document is empty")
    try:
        document = json.loads(body)
    except UnicodeDecodeError as error:
        raise invalid(f"JSON Parse error: Invalid encoding in string. at offset: {error.start}") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise invalid(f"JSON Parse error: Invalid value. at offset: {getattr(error, 'pos', 0)}") from error
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {_short(document)} Type: {_type_name(document)} is not of expected type: Object")
    return document


def predict_request(document: Mapping[str, Any], inputs: Mapping[str, Any]) -> tuple[Any, bool]:
    """A PredictRequest without model_spec.name, and whether it came in rows (`instances`) rather than columns.

    `inputs` are the signature's TensorInfos by alias. Raises ServingError.
    """
    request = predict_pb2.PredictRequest()
    if ("instances" in document) == ("inputs" in document):
        both = "Missing 'inputs' or 'instances' key" if "inputs" not in document else "Not formatted correctly: both"
        raise invalid(both if "inputs" not in document else f"{both} 'inputs' and 'instances' keys are set")
    rows = "instances" in document
    columns = _rows(document["instances"], inputs) if rows else _columns(document["inputs"], inputs)
    for alias, value in columns.items():
        _fill(request.inputs[alias], value, inputs[alias].dtype)
    return request, rows


def _rows(instances: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(instances, list) or not instances:
        raise invalid(f"Expecting 'instances' value to be a non-empty list, got {_short(instances)}")
    if not isinstance(instances[0], dict) or _is_b64(instances[0]):
        if len(inputs) != 1:
            raise invalid(
                f"instances is a plain list, but expecting list of objects as multiple input tensors required as per "
                f"tensorinfo_map: {', '.join(sorted(inputs))}"
            )
        return {next(iter(inputs)): instances}
    columns: dict[str, list[Any]] = {alias: [] for alias in instances[0]}
    for number, instance in enumerate(instances):
        if not isinstance(instance, dict) or set(instance) != set(columns) or not set(instance) <= set(inputs):
            raise invalid(
                f"Failed to process element: {number} of 'instances' list. Error: INVALID_ARGUMENT: JSON object: does "
                f"not have named inputs {', '.join(sorted(inputs))}"
            )
        for alias, value in instance.items():
            columns[alias].append(value)
    return columns


def _columns(value: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(value, dict) or _is_b64(value):
        if len(inputs) != 1:
            raise invalid(
                f"inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                f"tensorinfo_map: {', '.join(sorted(inputs))}"
            )
        return {next(iter(inputs)): value}
    for alias in value:
        if alias not in inputs:
            raise invalid(f"inputs has an unknown name {alias!r}; expected {', '.join(sorted(inputs))}")
    return value


def _fill(proto: Any, value: Any, dtype: int) -> None:
    shape, first = [], value
    while isinstance(first, list):
        shape.append(len(first))
        first = first[0] if first else None
    flat: list[Any] = []
    _flatten(value, shape, 0, dtype, flat)
    proto.dtype = dtype
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    if dtype == DT_STRING:
        proto.string_val.extend(flat)
    elif dtype == types_pb2.DT_HALF:
        proto.tensor_content = np.array(flat, np.float16).tobytes()
    elif dtype == types_pb2.DT_BFLOAT16:
        proto.tensor_content = (np.array(flat, np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    else:
        try:
            proto.tensor_content = np.array(flat, KINDS[dtype].storage).tobytes()
        except OverflowError as error:
            raise invalid(f"JSON Value: out of range for {_dtype_name(dtype)}: {error}") from error


def _flatten(value: Any, shape: list[int], level: int, dtype: int, flat: list[Any]) -> None:
    if level == len(shape):
        flat.append(_scalar(value, dtype))
        return
    if not isinstance(value, list) or len(value) != shape[level]:
        raise invalid(f"Encountered {_short(value)} at level {level}, expected a list of size {shape[level]}")
    for item in value:
        _flatten(item, shape, level + 1, dtype, flat)


def _scalar(value: Any, dtype: int) -> Any:
    if dtype == DT_STRING:
        if isinstance(value, str):
            return value.encode(errors="surrogatepass")
        if _is_b64(value):
            try:
                return base64.b64decode(value["b64"], validate=True)
            except (binascii.Error, TypeError, ValueError) as error:
                raise invalid(f"JSON Value: {_short(value)} is not valid base64: {error}") from error
    elif dtype == types_pb2.DT_BOOL:
        if isinstance(value, bool):
            return value
    elif dtype in KINDS and not isinstance(value, bool) and isinstance(value, int | float if dtype in _FLOATS else int):
        return value
    raise invalid(
        f"JSON Value: {_short(value)} Type: {_type_name(value)} is not of expected type: {_dtype_name(dtype)}"
    )


def _is_b64(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"b64"}


def predict_response(outputs: Mapping[str, Tensor], *, rows: bool) -> dict[str, Any]:
    """The JSON of a Predict's outputs. Raises ServingError where rows are asked for and the batch sizes differ."""
    values = {alias: _plain(alias, tensor) for alias, tensor in outputs.items()}
    if not rows:
        return {"outputs": next(iter(values.values())) if len(values) == 1 else values}
    batch: int | None = None
    for alias, tensor in outputs.items():
        if not tensor.shape:
            raise invalid(f"Tensor name: {alias} has no shape information ")
        if batch not in (None, tensor.shape[0]):
            raise invalid(f"Tensor name: {alias} has inconsistent batch size: {tensor.shape[0]} expecting: {batch}")
        batch = tensor.shape[0]
    if len(values) == 1:
        return {"predictions": next(iter(values.values()))}
    return {"predictions": [{alias: values[alias][row] for alias in values} for row in range(batch or 0)]}


def _plain(alias: str, tensor: Tensor) -> Any:
    if tensor.dtype not in KINDS and tensor.dtype != DT_STRING:
        raise invalid(f"Tensor name: {alias} has a type that JSON can't show: {_dtype_name(tensor.dtype)}")
    array = to_array(tensor)
    if tensor.dtype == DT_STRING:
        return _texts(array.tolist(), binary=alias.endswith("_bytes"))
    if array.dtype == np.float32 and "complex" not in _dtype_name(tensor.dtype):
        # The shortest text that is the same float32: 0.3, not 0.30000001192092896.
        array = array.astype("U32").astype(np.float64)
    return array.tolist()


def _texts(value: Any, *, binary: bool) -> Any:
    if isinstance(value, list):
        return [_texts(item, binary=binary) for item in value]
    return {"b64": base64.b64encode(value).decode()} if binary else value.decode(errors="replace")


def fill_input(document: Mapping[str, Any], message: Any) -> None:
    """The Input of a classify or regress body (`examples`, optional `context`). Raises ServingError."""
    rows = document.get("examples")
    if not isinstance(rows, list) or not rows:
        raise invalid("When method is classify or regress, the request needs a non-empty list 'examples'")
    parsed = input_pb2.Input()
    if "context" in document:
        _fill_example(document["context"], parsed.example_list_with_context.context)
        target = parsed.example_list_with_context.examples
    else:
        target = parsed.example_list.examples
    for row in rows:
        _fill_example(row, target.add())
    message.CopyFrom(parsed)


def _fill_example(row: Any, example: Any) -> None:
    if not isinstance(row, dict):
        raise invalid(f"Example must be JSON object but got JSON {_type_name(row)}")
    for name, value in row.items():
        values = value if isinstance(value, list) else [value]
        feature = example.features.feature[name]
        if all(isinstance(item, str) or _is_b64(item) for item in values):
            feature.bytes_list.value.extend(_scalar(item, DT_STRING) for item in values)
        elif all(isinstance(item, int) for item in values):
            feature.int64_list.value.extend(values)
        elif all(isinstance(item, int | float) for item in values):
            feature.float_list.value.extend(values)
        else:
            raise invalid(f"Unrecognized type of feature {name!r}: {_short(value)}")


def error_body(error: ServingError) -> bytes:
    """`{ "error": "…" }`, as TF Serving spaces it."""
    return f'{{ "error": {json.dumps(error.message)} }}'.encode()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:100] + "…"


def _type_name(value: Any) -> str:
    match value:
        case dict():
            return "Object"
        case list():
            return "Array"
        case str():
            return "String"
        case None:
            return "Null"
        case bool():
            return "True" if value else "False"
        case _:
            return "Number"


def _dtype_name(dtype: int) -> str:
    return str(types_pb2.DataType.Name(dtype)).removeprefix("DT_").lower()
