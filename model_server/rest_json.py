"""REST's JSON to request messages and back: TF Serving's json_tensor.cc.

Invariant: a value is taken only if its JSON type fits the signature's dtype; nothing is rounded or cut on the way in.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from model_server.errors import ServingError, invalid
from model_server.libtensorflow import DT_STRING, Tensor
from model_server.messages import input_pb2, predict_pb2, types_pb2
from model_server.tensors import KINDS, to_array

_Values: TypeAlias = tuple[list[int], list[Any]]
"""A tensor's shape and its values in row-major order."""
_FLOATS = {types_pb2.DT_FLOAT, types_pb2.DT_DOUBLE, types_pb2.DT_HALF, types_pb2.DT_BFLOAT16}

# Whole numbers up to here are exact in these types.
_EXACT = {types_pb2.DT_FLOAT: 2**24 - 1, types_pb2.DT_DOUBLE: 2**53 - 1}


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
        raise _malformed(document, "Is not object")
    return document


def predict_request(document: Mapping[str, Any], inputs: Mapping[str, Any]) -> tuple[Any, bool]:
    """A PredictRequest without model_spec, and whether it came in rows (`instances`) rather than columns (`inputs`).

    `inputs` are the signature's TensorInfos by alias. Raises ServingError.
    """
    rows = "instances" in document
    if rows and "inputs" in document:
        raise _malformed(
            document, "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist "
        )
    if not rows and "inputs" not in document:
        raise invalid("Missing 'inputs' or 'instances' key")
    columns = _rows(document, inputs) if rows else _columns(document["inputs"], inputs)
    request = predict_pb2.PredictRequest()
    for alias, (shape, flat) in columns.items():
        _fill(request.inputs[alias], inputs[alias].dtype, shape, flat)
    return request, rows


def _rows(document: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, _Values]:
    instances = document["instances"]
    if not isinstance(instances, list):
        raise _malformed(document, "Excepting 'instances' to be an list/array")  # their spelling
    if not instances:
        raise _malformed(document, "No values in 'instances' array")
    named = _is_named(instances[0])
    if not named and len(inputs) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map"
        )
    columns: dict[str, _Values] = {}
    for number, instance in enumerate(instances):
        if _is_named(instance) != named:
            wanted, got = ("object", "list") if named else ("value/list", "object")
            raise invalid(f"Expecting {wanted} but got {got} at item {number} of input list")
        for alias, value in instance.items() if named else [(next(iter(inputs)), instance)]:
            try:
                _add_row(columns, alias, value, inputs)
            except ServingError as error:
                key = f" key: {alias}" if named else ""
                text = f"Failed to process element: {number}{key} of 'instances' list. Error: {error}"
                raise invalid(text) from error
        if named and set(instance) != set(inputs):
            raise invalid(
                f"Failed to process element: {number} of 'instances' list. JSON object: {_short(instance)} keys must "
                f"be equal to: {','.join(sorted(inputs))}"
            )
    return {alias: ([len(instances), *shape], flat) for alias, (shape, flat) in columns.items()}


def _add_row(columns: dict[str, _Values], alias: str, value: Any, inputs: Mapping[str, Any]) -> None:
    if alias not in inputs:
        raise invalid(f"JSON object: does not have named input: {alias}")
    shape, flat = _read(value, inputs[alias].dtype)
    expected, values = columns.setdefault(alias, (shape, []))
    if shape != expected:
        raise invalid(f"Expecting shape [{','.join(map(str, expected))}] but got: [{','.join(map(str, shape))}]")
    values.extend(flat)


def _columns(value: Any, inputs: Mapping[str, Any]) -> dict[str, _Values]:
    if _is_named(value):
        missing = [alias for alias in inputs if alias not in value]
        if missing:
            raise invalid(f"Missing named input: {missing[0]} in 'inputs' object.")
        return {alias: _read(value[alias], info.dtype) for alias, info in inputs.items()}
    if len(inputs) > 1:
        raise invalid(
            "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
            "tensorinfo_map"
        )
    return {alias: _read(value, info.dtype) for alias, info in inputs.items()}


def _read(value: Any, dtype: int) -> _Values:
    shape, first = [], value
    while isinstance(first, list):
        shape.append(len(first))
        first = first[0] if first else None
    flat: list[Any] = []
    _flatten(value, shape, 0, dtype, flat)
    return shape, flat


def _fill(proto: Any, dtype: int, shape: list[int], flat: list[Any]) -> None:
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
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid(
                f"JSON Value: {_short(value)} found at incorrect level: {level + 1} in the JSON DOM. Expected at "
                f"level: {len(shape)}"
            )
        flat.append(_scalar(value, dtype))
        return
    if level >= len(shape):
        raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}"
        )
    for item in value:
        _flatten(item, shape, level + 1, dtype, flat)


def _scalar(value: Any, dtype: int) -> Any:
    if dtype == DT_STRING:
        if isinstance(value, str):
            return value.encode(errors="surrogatepass")
        if _is_b64(value):
            try:
                return base64.b64decode(value["b64"], validate=True)
            except ValueError as error:
                raise invalid("Unable to base64 decode") from error
    elif dtype == types_pb2.DT_BOOL:
        if isinstance(value, bool):
            return value
    elif dtype in KINDS and not isinstance(value, bool) and isinstance(value, int | float if dtype in _FLOATS else int):
        if isinstance(value, int) and abs(value) > _EXACT.get(dtype, sys.maxsize * 2 + 1):
            raise invalid(f"Cannot convert JSON value: {value} to {_dtype_name(dtype)} without loss of precision.")
        return value
    raise invalid(
        f"JSON Value: {_short(value)} Type: {_type_name(value)} is not of expected type: {_dtype_name(dtype)}"
    )


def _is_b64(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"b64"} and isinstance(value["b64"], str)


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and not _is_b64(value)


def _malformed(document: Any, text: str) -> ServingError:
    return invalid(f"JSON Value: {_short(document)} {text}")


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
        raise _malformed(document, "When method is classify, key 'examples' is expected to be a non-empty list")
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
