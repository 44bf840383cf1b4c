"""Ask a TensorFlow Serving for predictions: `python predict.py [HOST:PORT]`, by default 127.0.0.1:8500.

Nothing here knows of modelplane: it is the client that you would write for a single tensorflow_model_server.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # tensorflow-serving-api imports TensorFlow

import grpc
from tensorflow import make_ndarray, make_tensor_proto
from tensorflow_serving.apis import predict_pb2
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub as Stub

# Held-out images of scikit-learn's handwritten digits: 8 x 8 pixels from 0 to 16, a character each, 0 to 9 and a to g.
DIGITS = {
    "002ed30000dd9b0000g70c0003g50a5005g1085003g10a5000g85e30004gg910": 0,
    "003d700003f8e0000a81e00008b5d0000005c00000088000001ca752002eece7": 2,
    "0004g500003ea09b01db02f807g9bgf106fdcg9000008f200001f7000005f200": 4,
    "0005b100000ee200005g5000008f200000ad000000egg800006g9f600006eg80": 6,
    "04fgf4000bgefg000330ge20009ggg8000fgb10000bd100004g5000004f00000": 7,
    "003eg80003f84f1008a03g8003fdge100025g4000008b000000f2000002d0000": 9,
}


def predict(stub: Stub, model: str, version: int | None, **inputs: list) -> tuple[int, dict]:
    """One call: the version that answered, and its outputs. Without a version the served one answers."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    if version is not None:
        request.model_spec.version.value = version
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(make_tensor_proto(value, dtype="float32"))
    answer = stub.Predict(request, timeout=10)
    return answer.model_spec.version.value, {name: make_ndarray(tensor) for name, tensor in answer.outputs.items()}


def main(address: str) -> None:
    """Ask both example models, and the digits' first version too."""
    with grpc.insecure_channel(address) as channel:
        stub = Stub(channel)

        version, outputs = predict(stub, "half_plus_two", None, x=[1.0, 2.0, 5.0])
        print(f"half_plus_two version {version}: x = [1, 2, 5] -> y = {outputs['y'].tolist()}\n")

        images = [[[int(pixel, 17) for pixel in text[row : row + 8]] for row in range(0, 64, 8)] for text in DIGITS]
        for row in range(8):
            print(
                " " * 20 + "  ".join("".join(" .:-=+*#%@"[pixel * 9 // 16] for pixel in image[row]) for image in images)
            )
        print(f"{'what was written':<20}" + "  ".join(f"{digit:^8}" for digit in DIGITS.values()))
        for wanted in (None, 1):
            version, outputs = predict(stub, "digits", wanted, images=images)
            said = [
                f"{digit} ({p.max():.0%})" for digit, p in zip(outputs["class"], outputs["probabilities"], strict=True)
            ]
            print(f"{f'digits version {version}':<20}" + "  ".join(f"{one:^8}" for one in said))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8500")
