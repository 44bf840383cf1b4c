"""A SavedModel as TensorFlow itself writes it: variables to restore, a lookup table to initialise, an asset file.

Waits for a child process that imports all of TensorFlow and saves, then for the server's port.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.model_server import ModelServer
from tests.support.saved_models import predict_request

pytestmark = pytest.mark.scenario

SAVE = """
import sys
import tensorflow as tf

class Model(tf.Module):
    def __init__(self):
        self.a, self.b = tf.Variable(0.5), tf.Variable(2.0)
        words = tf.lookup.TextFileInitializer(
            sys.argv[2], tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER, tf.string, tf.lookup.TextFileIndex.WHOLE_LINE)
        self.words = tf.lookup.StaticHashTable(words, "?")

    @tf.function
    def __call__(self, x):
        return {"y": self.a * x + self.b, "word": self.words.lookup(tf.cast(x, tf.int64))}

model = Model()
signature = model.__call__.get_concrete_function(x=tf.TensorSpec([None], tf.float32))
tf.saved_model.save(model, sys.argv[1], signatures={"serving_default": signature})
"""


def test_variables_tables_and_assets(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("zero\none\n")
    base = tmp_path / "m"
    subprocess.run([sys.executable, "-c", SAVE, str(base / "1"), str(words)], check=True, capture_output=True)
    words.unlink()  # its copy is in the SavedModel's assets
    with ModelServer(tmp_path / "log", "--model_name=m", f"--model_base_path={base}") as server:
        outputs = server.predictions.Predict(predict_request("m", [1.0, 5.0]), timeout=10).outputs
        assert list(outputs["y"].float_val) == [2.5, 4.5]
        assert list(outputs["word"].string_val) == [b"one", b"?"]
