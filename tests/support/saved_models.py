"""Small SavedModels, written as GraphDefs by hand in a few milliseconds, without TensorFlow's Python API.

Every writer takes the model's base path and a version, puts the version folder there in one rename (a server that polls
never sees half of it) and returns it. All run in the real tensorflow_model_server too: slowness is a graph's own
(`SleepDataset`, which burns no CPU and lets requests sleep side by side), not a switch of our server.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from model_server.messages import (
    bare_tensorflow,
    predict_pb2,
    prediction_log_pb2,
    saved_model_pb2,
    types_pb2,
)

with bare_tensorflow():
    # Imported here once, so that a test's own import of the official client costs nothing and needs no Keras.
    from tensorflow_serving.apis import model_service_pb2_grpc as model_service_pb2_grpc
    from tensorflow_serving.apis import prediction_service_pb2_grpc as prediction_service_pb2_grpc

_ANY_SHAPE = "shape { unknown_rank: true }"
_VECTOR = "shape { dim { size: -1 } }"


def half_plus_two(base: Path, version: int = 1, *, a: float = 0.5, b: float = 2.0) -> Path:
    """`y = a * x + b`, float32 of shape [None]. Give each version another `b` to tell which one has answered."""
    return _write(base, version, _line(a, b), {"serving_default": _signature("x:0", "y:0", "DT_FLOAT")})


def echo(base: Path, version: int = 1, *, dtype: str = "DT_UINT8") -> Path:
    """`y = x`, any shape, for tests of body sizes; DT_STRING for bytes."""
    nodes = _placeholder("x", dtype) + _node("y", "Identity", ["x"], T=f"type: {dtype}")
    return _write(base, version, nodes, {"serving_default": _signature("x:0", "y:0", dtype, None)})


def slow(base: Path, version: int = 1, *, seconds: float = 0.3) -> Path:
    """`y = 0.5 * x + 2` after `seconds` of sleep."""
    nodes = _line(0.5, 2.0, x="slept") + _sleep(seconds)
    return _write(base, version, nodes, {"serving_default": _signature("x:0", "y:0", "DT_FLOAT")})


def slow_to_load(base: Path, version: int = 1, *, seconds: float = 2.0, a: float = 0.5, b: float = 2.0) -> Path:
    """half_plus_two whose loading takes `seconds`: a warm-up record asks another signature, which sleeps."""
    signatures = {
        "serving_default": _signature("x:0", "y:0", "DT_FLOAT"),
        "sleep": _signature("x:0", "slept:0", "DT_FLOAT"),
    }
    request = predict_request("any", [1.0])
    request.model_spec.signature_name = "sleep"
    return _write(base, version, _line(a, b) + _sleep(seconds), signatures, warmup=[request])


def without_variables(base: Path, version: int = 1) -> Path:
    """`y = x + b` whose variable b is nowhere: TF Serving says AVAILABLE, Predict says FAILED_PRECONDITION."""
    nodes = (
        _placeholder("x", "DT_FLOAT")
        + _node("b", "VarHandleOp", [], dtype="type: DT_FLOAT", shape="shape { }", shared_name='s: "b"')
        + _node("read", "ReadVariableOp", ["b"], dtype="type: DT_FLOAT")
        + _node("y", "AddV2", ["x", "read"], T="type: DT_FLOAT")
    )
    return _write(base, version, nodes, {"serving_default": _signature("x:0", "y:0", "DT_FLOAT")})


def switched(base: Path, switch: Path, version: int = 1) -> Path:
    """`y = 0.5 * x + b` that reads b from the file `switch` at each request: NOT_FOUND while it is absent, blocked
    while it is a FIFO that nobody writes to. The path depends on the input, else TensorFlow would read it only once."""
    nodes = _node("nothing", "StaticRegexReplace", ["text"], pattern='s: ".*"', rewrite='s: ""') + _read_b(
        "nothing", str(switch)
    )
    return _write(base, version, nodes, {"serving_default": _signature("x:0", "y:0", "DT_FLOAT")})


def choosy(base: Path, version: int = 1, *, b: float = 2.0) -> Path:
    """`y = 0.5 * x + b` for a single 0, which is what the monitor asks; NOT_FOUND for everything else."""
    nodes = _read_b("text", f"{base}/for-")
    base.mkdir(parents=True, exist_ok=True)
    (base / "for-0.000000").write_text(str(b))
    return _write(base, version, nodes, {"serving_default": _signature("x:0", "y:0", "DT_FLOAT")})


def _read_b(text: str, prefix: str) -> str:
    """`y = 0.5 * x + b` with b out of the file whose name is the prefix and the joined strings of a node: `text`, which
    is the input's values, or one that the caller makes of it."""
    first = "tensor { dtype: DT_INT32 tensor_shape { dim { size: 1 } } int_val: 0 }"
    return (
        _placeholder("x", "DT_FLOAT")
        + _node("first", "Const", [], dtype="type: DT_INT32", value=first)
        + _scalar("a", 0.5)
        + _node("ax", "Mul", ["x", "a"], T="type: DT_FLOAT")
        + _node("text", "AsString", ["x"], T="type: DT_FLOAT")
        + _node("joined", "ReduceJoin", [text, "first"])
        + _node("prefix", "Const", [], dtype="type: DT_STRING", value=_text(prefix))
        + _node("path", "StringJoin", ["prefix", "joined"], N="i: 2")
        + _node("read", "ReadFile", ["path"])
        + _node("b", "StringToNumber", ["read"], out_type="type: DT_FLOAT")
        + _node("y", "AddV2", ["ax", "b"], T="type: DT_FLOAT")
    )


def defaulted(base: Path, version: int = 1) -> Path:
    """`y = x + extra`, `also = x`; `extra` has the default 100."""
    nodes = (
        _placeholder("x", "DT_FLOAT")
        + _placeholder("extra", "DT_FLOAT")
        + _node("y", "AddV2", ["x", "extra"], T="type: DT_FLOAT")
        + _node("also", "Identity", ["x"], T="type: DT_FLOAT")
    )
    more = (
        f'inputs {{ key: "extra" value {{ {_info("extra:0", "DT_FLOAT", None)} }} }} '
        f'outputs {{ key: "also" value {{ {_info("also:0", "DT_FLOAT", _VECTOR)} }} }} '
        'defaults { key: "extra" value { dtype: DT_FLOAT tensor_shape { } float_val: 100 } }'
    )
    return _write(base, version, nodes, {"serving_default": _signature("x:0", "y:0", "DT_FLOAT") + more})


def examples(base: Path, version: int = 1) -> Path:
    """Classify (signature `classify`) and Regress (serving_default, `regress`) over tf.Examples with a float `x`:
    scores are [[x]], the label "x"; the value is 0.5 * x + 2."""
    nodes = (
        _placeholder("examples", "DT_STRING", _VECTOR)
        + _strings("names", [])
        + _strings("sparse", [])
        + _strings("dense", ["x"])
        + _strings("ragged", [])
        + _scalar("zero", 0.0, shape="dim { size: 1 }")
        + _node(
            "parse",
            "ParseExampleV2",
            ["examples", "names", "sparse", "dense", "ragged", "zero"],
            Tdense="list { type: DT_FLOAT }",
            num_sparse="i: 0",
            sparse_types="list { }",
            ragged_value_types="list { }",
            ragged_split_types="list { }",
            dense_shapes="list { shape { dim { size: 1 } } }",
        )
        + _line(0.5, 2.0, x="parse", placeholder=False)
        + _node("labels", "AsString", ["parse"], T="type: DT_FLOAT", precision="i: 1")
    )
    serialized = f'inputs {{ key: "inputs" value {{ {_info("examples:0", "DT_STRING", _VECTOR)} }} }}'
    regress = (
        f'{serialized} outputs {{ key: "outputs" value {{ {_info("y:0", "DT_FLOAT", _ANY_SHAPE)} }} }} '
        'method_name: "tensorflow/serving/regress"'
    )
    classify = (
        f'{serialized} outputs {{ key: "scores" value {{ {_info("parse:0", "DT_FLOAT", _ANY_SHAPE)} }} }} '
        f'outputs {{ key: "classes" value {{ {_info("labels:0", "DT_STRING", _ANY_SHAPE)} }} }} '
        'method_name: "tensorflow/serving/classify"'
    )
    return _write(base, version, nodes, {"serving_default": regress, "regress": regress, "classify": classify})


def corrupt(base: Path, version: int = 1) -> Path:
    """A version folder whose saved_model.pb is garbage."""
    folder = empty(base, version)
    (folder / "saved_model.pb").write_bytes(b"garbage")
    return folder


def empty(base: Path, version: int = 1) -> Path:
    """A version folder with nothing in it."""
    folder = base / str(version)
    folder.mkdir(parents=True)
    return folder


def repair(folder: Path) -> None:
    """Make a corrupt or empty version folder a good half_plus_two."""
    good = half_plus_two(folder.parent / ".repair", int(folder.name))
    shutil.copytree(good, folder, dirs_exist_ok=True)


def write_warmup(folder: Path, requests: Sequence[Any]) -> None:
    """Record PredictRequests as the version's warm-up (TFRecord framing, checksums left at zero)."""
    (folder / "assets.extra").mkdir(exist_ok=True)
    with (folder / "assets.extra" / "tf_serving_warmup_requests").open("wb") as file:
        for request in requests:
            log = prediction_log_pb2.PredictionLog()
            log.predict_log.request.CopyFrom(request)
            data = log.SerializeToString()
            file.write(struct.pack("<QI", len(data), 0) + data + struct.pack("<I", 0))


def predict_request(model: str, x: Sequence[float], version: int | None = None) -> Any:
    """A PredictRequest with a float32 vector for the input `x`."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    if version is not None:
        request.model_spec.version.value = version
    tensor = request.inputs["x"]
    tensor.dtype = types_pb2.DT_FLOAT
    tensor.tensor_shape.dim.add(size=len(x))
    tensor.tensor_content = struct.pack(f"<{len(x)}f", *x)
    return request


def _write(base: Path, version: int, nodes: str, signatures: Mapping[str, str], *, warmup: Sequence[Any] = ()) -> Path:
    model = saved_model_pb2.SavedModel(saved_model_schema_version=1)
    graph = model.meta_graphs.add()
    graph.meta_info_def.tags.append("serve")
    # 1087 is a producer that every TensorFlow 2 accepts.
    text_format.Parse(f"versions {{ producer: 1087 }} {nodes}", graph.graph_def)
    for name, text in signatures.items():
        text_format.Parse(text, graph.signature_def[name])
    partial = base / f".partial-{version}"
    partial.mkdir(parents=True)
    (partial / "saved_model.pb").write_bytes(model.SerializeToString())
    if warmup:
        write_warmup(partial, warmup)
    return partial.rename(base / str(version))


def _node(name: str, op: str, inputs: Sequence[str], *, field: str = "node", **attributes: str) -> str:
    wires = " ".join(f'input: "{wire}"' for wire in inputs)
    attrs = " ".join(f'attr {{ key: "{key}" value {{ {value} }} }}' for key, value in attributes.items())
    return f'{field} {{ name: "{name}" op: "{op}" {wires} {attrs} }}\n'


def _placeholder(name: str, dtype: str, shape: str = _ANY_SHAPE) -> str:
    return _node(name, "Placeholder", [], dtype=f"type: {dtype}", shape=shape)


def _scalar(name: str, value: float, shape: str = "") -> str:
    tensor = f"tensor {{ dtype: DT_FLOAT tensor_shape {{ {shape} }} float_val: {value!r} }}"
    return _node(name, "Const", [], dtype="type: DT_FLOAT", value=tensor)


def _strings(name: str, values: Sequence[str]) -> str:
    quoted = " ".join(f'string_val: "{value}"' for value in values)
    tensor = f"tensor {{ dtype: DT_STRING tensor_shape {{ dim {{ size: {len(values)} }} }} {quoted} }}"
    return _node(name, "Const", [], dtype="type: DT_STRING", value=tensor)


def _text(value: str) -> str:
    return f'tensor {{ dtype: DT_STRING tensor_shape {{ }} string_val: "{value}" }}'


def _line(a: float, b: float, *, x: str = "x", placeholder: bool = True) -> str:
    return (
        (_placeholder("x", "DT_FLOAT") if placeholder else "")
        + _scalar("a", a)
        + _scalar("b", b)
        + _node("ax", "Mul", [x, "a"], T="type: DT_FLOAT")
        + _node("y", "AddV2", ["ax", "b"], T="type: DT_FLOAT")
    )


def _sleep(seconds: float) -> str:
    # DatasetToSingleElement asks twice (is there a second element?), so each sleep is half. The single-threaded
    # executor runs it in the caller's thread: any other gives the kernel one thread, and requests would queue up.
    half = f"tensor {{ dtype: DT_INT64 tensor_shape {{ }} int64_val: {int(seconds * 500_000)} }}"
    element = {"output_types": "list { type: DT_FLOAT }", "output_shapes": f"list {{ {_ANY_SHAPE} }}"}
    body = (
        _node("half", "Const", [], field="node_def", dtype="type: DT_INT64", value=half)
        + _node(
            "data",
            "TensorDataset",
            ["x"],
            field="node_def",
            Toutput_types=element["output_types"],
            output_shapes=element["output_shapes"],
        )
        + _node("sleeper", "SleepDataset", ["data:handle:0", "half:output:0"], field="node_def", **element)
        + _node("one", "DatasetToSingleElement", ["sleeper:handle:0"], field="node_def", **element)
    )
    return _node(
        "slept",
        "StatefulPartitionedCall",
        ["x"],
        Tin="list { type: DT_FLOAT }",
        Tout="list { type: DT_FLOAT }",
        f='func { name: "sleep" }',
        executor_type='s: "SINGLE_THREADED_EXECUTOR"',
        config='s: ""',
        config_proto='s: ""',
    ) + (
        'library { function { signature { name: "sleep" is_stateful: true input_arg { name: "x" type: DT_FLOAT } '
        'output_arg { name: "y" type: DT_FLOAT } } attr { key: "_noinline" value { b: true } } '
        f'{body} ret {{ key: "y" value: "one:components:0" }} }} }}\n'
    )


def _info(name: str, dtype: str, shape: str | None) -> str:
    dims = (shape or _ANY_SHAPE).replace("shape {", "tensor_shape {", 1)
    return f'name: "{name}" dtype: {dtype} {dims}'


def _signature(x: str, y: str, dtype: str, shape: str | None = _VECTOR) -> str:
    return (
        f'inputs {{ key: "x" value {{ {_info(x, dtype, shape)} }} }} '
        f'outputs {{ key: "y" value {{ {_info(y, dtype, shape)} }} }} method_name: "tensorflow/serving/predict" '
    )
