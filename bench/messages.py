"""The one request that a benchmark sends, and the one answer of the cheap upstream, as serialised bytes."""

from __future__ import annotations

import re

from control_plane.resources.wire import bytes_field, string_field
from monitor.pb import tfs_pb2

METHOD = "/tensorflow.serving.PredictionService/Predict"
DEFAULT_INPUT = "x"
_DT_FLOAT = 1
_UNITS = {"": 1, "b": 1, "kib": 1024, "mib": 1024**2, "kb": 1000, "mb": 1000**2}


def parse_size(text: str) -> int:
    """Bytes out of `200`, `200B`, `600KiB` or `8MiB`. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+)\s*([a-zA-Z]*)\s*", text)
    if not match or match[2].lower() not in _UNITS:
        raise ValueError(f"{text!r} is not a size; write 200, 600KiB or 8MiB")
    return int(match[1]) * _UNITS[match[2].lower()]


def size_text(size: int) -> str:
    """`parse_size` backwards."""
    for unit, factor in (("MiB", 1024**2), ("KiB", 1024)):
        if size >= factor and size % factor == 0:
            return f"{size // factor} {unit}"
    return f"{size:,} B"


def predict_request(model: str, size: int, name: str = DEFAULT_INPUT) -> bytes:
    """A PredictRequest for `model` with one float32 vector, at most `size` bytes long and at most 7 short of it.

    It names no version, which is what makes the router pin one where that is needed, and puts model_spec first, as the
    official client does. Raises ValueError if a request with a single number is longer already.
    """
    count = max(1, size // 4)
    while True:
        request = tfs_pb2.PredictRequest()
        request.model_spec.name = model
        tensor = request.inputs[name]
        tensor.dtype = _DT_FLOAT
        tensor.tensor_shape.dim.add(size=count)
        tensor.tensor_content = bytes(4 * count)
        body = request.SerializeToString(deterministic=True)
        over = len(body) - size
        if over <= 0:
            return body
        if count == 1:
            raise ValueError(f"a request for {model!r} can't be shorter than {len(body)} bytes; ask for a larger size")
        count = max(1, count - -(-over // 4))


def predict_response() -> bytes:
    """A PredictResponse with one number, as half_plus_two gives it for 0.

    By hand, because our copy of TF Serving's messages has no answers (predict.proto: outputs = 1, model_spec = 2).
    """
    spec = tfs_pb2.ModelSpec(name="bench", signature_name="serving_default")
    spec.version.value = 1
    tensor = tfs_pb2.TensorProto(dtype=_DT_FLOAT, float_val=[2.0])
    tensor.tensor_shape.dim.add(size=1)
    output = string_field(1, "y") + bytes_field(2, tensor.SerializeToString())
    return bytes_field(1, output) + bytes_field(2, spec.SerializeToString())


def frame(message: bytes) -> bytes:
    """A message as gRPC puts it into an HTTP/2 body: uncompressed, with its length in front."""
    return b"\0" + len(message).to_bytes(4, "big") + message
