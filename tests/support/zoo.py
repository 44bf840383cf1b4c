"""Writes the zoo: SavedModels that are not what they seem, each as TensorFlow itself saves it.

    python -m tests.support.zoo FOLDER

writes FOLDER/NAME/1 for each of MODELS. A process of its own, for TensorFlow takes seconds to import. What is broken
by hand (files that are missing, cut off or still being copied) is made of `variables` by the functions below.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

DATA = "variables.data-00000-of-00001"


def write_zoo(folder: Path) -> None:
    """Run the process."""
    command = [sys.executable, "-m", "tests.support.zoo", str(folder)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, cwd=root, env=environment, check=False)
    assert done.returncode == 0, done.stderr


def copy_without(good: Path, to: Path, *left_out: str) -> Path:
    """A version folder as it looks when its copy was broken off: the files of these names are not there."""
    shutil.copytree(good, to, ignore=lambda _, names: [name for name in names if name in left_out])
    return to


def cut(file: Path, share: float = 0.5) -> None:
    """Leave the first part of a file, as a copy does that was broken off."""
    os.truncate(file, int(file.stat().st_size * share))


def _models(tf: Any, pipe: Path) -> dict[str, Any]:
    """By name, a function that answers one request; its signature is `serving_default`. `pipe`: a FIFO without a
    writer, which blocks whoever opens it."""
    vector = tf.TensorSpec([None], tf.float32, "x")
    integers = tf.TensorSpec([None], tf.int32, "x")
    strings = tf.TensorSpec([None], tf.string, "x")

    def fails(x: Any) -> Any:
        with tf.control_dependencies([tf.debugging.assert_less(x, -1e30, "this model takes nothing")]):
            return tf.identity(x)

    def example(default: list[float] | None) -> Any:
        features = {"x": tf.io.FixedLenFeature([1], tf.float32, default)}
        return lambda x: tf.io.parse_example(x, features)["x"]

    def endless(x: Any) -> Any:
        # Until x is 1e30 or more, which no number of doublings makes of a zero; others take a hundred rounds.
        return tf.while_loop(lambda y: tf.reduce_max(y) < 1e30, lambda y: [2 * y], [x])[0]

    return {
        "plain": (lambda x: x / 2 + 2, vector),
        "fails": (fails, vector),
        "unknown": (lambda x: x + tf.cast(tf.strings.length(tf.io.read_file("/proc/self/mem")), tf.float32), vector),
        "lost": (lambda x: x + tf.cast(tf.strings.length(tf.io.read_file("/nowhere")), tf.float32), vector),
        "corrupt": (lambda x: tf.io.decode_compressed(tf.strings.as_string(x), "ZLIB"), vector),
        "nan": (lambda x: x / tf.norm(x), vector),
        "inf": (tf.math.log, vector),
        "endless": (endless, vector),
        "blocked": (lambda x: x + tf.cast(tf.strings.length(tf.io.read_file(str(pipe))), tf.float32), vector),
        "image": (lambda x: tf.map_fn(tf.io.decode_png, x, fn_output_signature=tf.uint8), strings),
        "example": (example(None), strings),
        "defaulted": (example([1.0]), strings),
        "gather": (lambda x: tf.gather([10.0, 20.0], x - 1), integers),
        "divides": (lambda x: 100 // x, integers),
        "ragged": (lambda x: x.values, tf.RaggedTensorSpec([None, None], tf.float32, 1)),
        "sparse": (lambda x: x.values, tf.SparseTensorSpec([None, 3], tf.float32)),
        "unranked": (lambda x: x, tf.TensorSpec(None, tf.float32, "x")),
        "huge": (lambda x: tf.reduce_sum(x), tf.TensorSpec([None, 16384, 8192], tf.float32, "x")),
        "mismatch": (lambda x: tf.matmul(x, tf.ones([3, 1])), tf.TensorSpec([None, 3], tf.float32, "x")),
    }


def _write(folder: Path) -> None:
    import tensorflow as tf

    folder.mkdir(parents=True, exist_ok=True)
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    for name, (call, spec) in _models(tf, pipe).items():
        module = tf.Module()
        module.call = tf.function(call, input_signature=[spec])
        tf.saved_model.save(module, str(folder / name / "1"), signatures=module.call)
    module = tf.Module()
    module.b = tf.Variable(tf.fill([256], 2.0))
    module.call = tf.function(lambda x: x + module.b[0], input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    tf.saved_model.save(module, str(folder / "variables" / "1"), signatures=module.call)
    tf.saved_model.save(module, str(folder / "unsigned" / "1"), signatures={})
    _relabel(folder / "mismatch" / "1" / "saved_model.pb", size=2)
    shutil.copytree(folder / "plain", folder / "composite")
    _relabel(folder / "composite" / "1" / "saved_model.pb", sparse=True)
    shutil.copytree(folder / "plain", folder / "mistyped")
    _relabel(folder / "mistyped" / "1" / "saved_model.pb", dtype=tf.int32.as_datatype_enum)
    shutil.copytree(folder / "plain", folder / "misnamed")
    _relabel(folder / "misnamed" / "1" / "saved_model.pb", name="nowhere:0")


def _relabel(file: Path, *, dtype: int = 0, size: int = 0, name: str = "", sparse: bool = False) -> None:
    """Make the signature's input say something else than the graph."""
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    (tensor,) = model.meta_graphs[0].signature_def["serving_default"].inputs.values()
    tensor.dtype, tensor.name = dtype or tensor.dtype, name or tensor.name
    if sparse:
        # As TensorFlow 1 spelled it; TensorFlow 2 makes plain inputs of a sparse or ragged one's parts.
        tensor.coo_sparse.values_tensor_name = "values:0"
    if size:
        tensor.tensor_shape.dim[1].size = size
    file.write_bytes(model.SerializeToString())


if __name__ == "__main__":
    _write(Path(sys.argv[1]))
