"""TF Serving's protobuf modules, without TensorFlow's Python API.

Invariant: nothing in this package runs `tensorflow/__init__.py`. It takes 3 to 8 s and 500 MB and needs Keras, and a
server that only hands SavedModels to the C library has no use for it; but `tensorflow_serving.apis` imports
`tensorflow.core.*`. A bare package of the same name, with the real one's path, gives it those in 50 ms.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from types import ModuleType


@contextlib.contextmanager
def bare_tensorflow() -> Iterator[None]:
    """Inside, `tensorflow.core.*` can be imported without the rest; afterwards `import tensorflow` is the real one.

    Does nothing where TensorFlow is imported already. Raises ModuleNotFoundError, with the mend, where it is missing.
    """
    if "tensorflow" in sys.modules:
        yield
        return
    spec = find_spec("tensorflow")
    if spec is None or spec.submodule_search_locations is None or find_spec("tensorflow_serving") is None:
        raise ModuleNotFoundError("model-server needs TensorFlow: pip install 'modelplane[local]'", name="tensorflow")
    package = ModuleType("tensorflow")
    package.__path__ = list(spec.submodule_search_locations)
    package.__spec__ = spec
    sys.modules["tensorflow"] = package
    try:
        yield
    finally:
        del sys.modules["tensorflow"]


with bare_tensorflow():
    from tensorflow.core.example import example_pb2
    from tensorflow.core.framework import tensor_pb2, types_pb2
    from tensorflow.core.protobuf import config_pb2, meta_graph_pb2, saved_model_pb2
    from tensorflow_serving.apis import (
        classification_pb2,
        get_model_metadata_pb2,
        get_model_status_pb2,
        input_pb2,
        model_management_pb2,
        predict_pb2,
        prediction_log_pb2,
        regression_pb2,
    )
    from tensorflow_serving.config import model_server_config_pb2

__all__ = [
    "classification_pb2",
    "config_pb2",
    "example_pb2",
    "get_model_metadata_pb2",
    "get_model_status_pb2",
    "input_pb2",
    "meta_graph_pb2",
    "model_management_pb2",
    "model_server_config_pb2",
    "predict_pb2",
    "prediction_log_pb2",
    "regression_pb2",
    "saved_model_pb2",
    "tensor_pb2",
    "types_pb2",
]
