"""Ask for one prediction over and over, and count which version answered:

    python ask.py MODEL[@VERSION|:LABEL] [REQUESTS] [HEADER=VALUE]

Without REQUESTS (or with 0) it goes on until Ctrl-C and counts anew every second. The address is MODELPLANE_ADDRESS, by
default 127.0.0.1:8500. As predict.py it knows nothing of modelplane.
"""

import os
import re
import sys
import time
from collections import Counter
from contextlib import suppress

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # tensorflow-serving-api imports TensorFlow

import grpc
from predict import DIGITS, Stub
from tensorflow import make_tensor_proto
from tensorflow_serving.apis import predict_pb2

IMAGE = next(iter(DIGITS))
INPUTS = {
    "half_plus_two": {"x": [1.0, 2.0, 5.0]},
    "digits": {"images": [[[int(pixel, 17) for pixel in IMAGE[row : row + 8]] for row in range(0, 64, 8)]]},
}


def request_for(target: str) -> predict_pb2.PredictRequest:
    """The same for every call. `target` is NAME, NAME@VERSION or NAME:LABEL."""
    name, mark, which = re.fullmatch(r"([^@:]+)([@:]?)(.*)", target).groups()
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    if mark == "@":
        request.model_spec.version.value = int(which)
    elif mark == ":":
        request.model_spec.version_label = which
    for key, value in INPUTS[name].items():
        request.inputs[key].CopyFrom(make_tensor_proto(value, dtype="float32"))
    return request


def told(counts: Counter) -> str:
    """Such as `version 1: 897  version 2: 103`."""
    return "  ".join(f"{who}: {count}" for who, count in sorted(counts.items())) or "nothing"


def main(target: str, requests: int = 0, *headers: str) -> None:
    """Ask one after the other; with no number of requests some 100 a second."""
    request = request_for(target)
    metadata = tuple(tuple(header.split("=", 1)) for header in headers)
    counts: Counter[str] = Counter()
    asked, second = 0, time.monotonic()
    with grpc.insecure_channel(os.environ.get("MODELPLANE_ADDRESS", "127.0.0.1:8500")) as channel:
        stub = Stub(channel)
        while not requests or asked < requests:
            asked += 1
            try:
                answer = stub.Predict(request, timeout=10, metadata=metadata)
                counts[f"version {answer.model_spec.version.value}"] += 1
            except grpc.RpcError as error:
                counts[f"{error.code().name} ({error.details()[:60]})"] += 1
            if not requests:
                time.sleep(0.01)
                if time.monotonic() >= second + 1:
                    print(told(counts), flush=True)
                    counts.clear()
                    second = time.monotonic()
    print(told(counts))


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        sys.exit(__doc__)
    with suppress(KeyboardInterrupt):
        main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0, *sys.argv[3:])
