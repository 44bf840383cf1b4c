"""Train the example models and write them as SavedModels: `python train.py FOLDER` fills FOLDER/NAME/VERSION.

- half_plus_two 1: TensorFlow Serving's own sample, y = x / 2 + 2.
- digits 1 and 2: handwritten digits, 8 x 8 pixels from 0 to 16, scikit-learn's copy of the UCI data set. Version 1 is a
  softmax regression that stopped early; version 2 a network with a hidden layer. A fifth of the images is held out.

A version's folder appears whole or not at all, so a server that watches FOLDER never sees half a model. What is there
already is left alone.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read when TensorFlow is imported: no greetings
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# These matrices are tiny: on a busy machine several threads wait for each other ten times longer than they work.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

SEED = 2021


class HalfPlusTwo(tf.Module):
    """y = a * x + b with a = 0.5 and b = 2, element by element."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = tf.Variable(0.5, name="a"), tf.Variable(2.0, name="b")

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def predict(self, x: Any) -> dict[str, Any]:
        """One y per x."""
        return {"y": self.a * x + self.b}


class Digits(tf.Module):
    """Layers of weights and biases, with ReLU between them and a softmax at the end."""

    def __init__(self, layers: list[tuple[np.ndarray, np.ndarray]]) -> None:
        super().__init__()
        self.layers = [(tf.Variable(w, dtype=tf.float32), tf.Variable(b, dtype=tf.float32)) for w, b in layers]

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8], tf.float32, name="images")])
    def predict(self, images: Any) -> dict[str, Any]:
        """The class, 0 to 9, and the probability of each, per image."""
        x = tf.reshape(images, [-1, 64]) / 16.0
        for number, (weights, bias) in enumerate(self.layers):
            x = tf.matmul(tf.nn.relu(x) if number else x, weights) + bias
        return {"class": tf.argmax(x, axis=1), "probabilities": tf.nn.softmax(x)}


def held_out() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images to learn from, images held out, and the right answers of both."""
    data = load_digits()
    parts = train_test_split(data.images, data.target, test_size=0.2, random_state=SEED, stratify=data.target)
    return tuple(parts)  # type: ignore[return-value]


def train_digits(version: int) -> tuple[tf.Module, str]:
    """Learn, and tell how many of the held-out images come out right."""
    images, unseen, answers, unseen_answers = held_out()
    pixels = images.reshape(-1, 64) / 16.0
    if version == 1:
        learner: Any = LogisticRegression(max_iter=5, random_state=SEED)
        kind = "softmax regression"
    else:
        learner = MLPClassifier((128,), max_iter=120, learning_rate_init=0.003, alpha=0.01, random_state=SEED)
        kind = "network with 128 hidden units"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # stopping early is the point
        learner.fit(pixels, answers)
    layers = (
        [(learner.coef_.T, learner.intercept_)]
        if version == 1
        else list(zip(learner.coefs_, learner.intercepts_, strict=True))
    )
    model = Digits(layers)
    right = model.predict(unseen.astype(np.float32))["class"].numpy() == unseen_answers
    return model, f"{kind}, {right.mean():.1%} of {len(right)} held-out images right"


MODELS: dict[tuple[str, int], Callable[[], tuple[tf.Module, str]]] = {
    ("half_plus_two", 1): lambda: (HalfPlusTwo(), "y = x / 2 + 2"),
    ("digits", 1): lambda: train_digits(1),
    ("digits", 2): lambda: train_digits(2),
}


def write(model: tf.Module, folder: Path) -> None:
    """Save under a temporary name beside the models, then rename: the folder appears whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=folder.parent.parent) as building:
        whole = Path(building) / "model"
        tf.saved_model.save(model, str(whole), signatures={"serving_default": model.predict})
        whole.rename(folder)


def main(folder: Path) -> None:
    """Make what is missing; print one line per model version."""
    tf.get_logger().setLevel("ERROR")
    for (name, version), make in MODELS.items():
        target = folder / name / str(version)
        if target.exists():
            print(f"{name} version {version}: there already", flush=True)
            continue
        started = time.monotonic()
        model, summary = make()
        write(model, target)
        print(f"{name} version {version}: {summary} ({time.monotonic() - started:.1f} s)", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
