"""One loaded version of one model. Invariant: a SavedModel that is constructed has been through its warm-up.

Loading fails with TF Serving's codes and messages; a model without its variables loads all the same, as there.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from model_server.errors import Code, ServingError, invalid
from model_server.libtensorflow import Session
from model_server.messages import meta_graph_pb2, prediction_log_pb2, saved_model_pb2

WARMUP_FILE = Path("assets.extra") / "tf_serving_warmup_requests"
MAX_WARMUP_RECORDS = 1000  # TF Serving's own limit


class SavedModel:
    """A session and the signatures by which it is asked."""

    def __init__(self, path: Path, tags: tuple[str, ...], config: bytes) -> None:
        self.signatures: dict[str, Any] = read_signatures(path, tags)
        self.session = Session.load(path, tags, config)

    def warm_up(self, path: Path, ask: Callable[[SavedModel, Any], object], iterations: int = 1) -> None:
        """Ask every recorded request through `ask(model, prediction_log)`. Raises ServingError if one fails."""
        for number, log in enumerate(read_warmup_records(path / WARMUP_FILE)):
            if number >= MAX_WARMUP_RECORDS:
                raise invalid(f"Number of warmup records exceeds the maximum ({MAX_WARMUP_RECORDS}) at {path}")
            for _ in range(iterations):
                ask(self, log)

    def close(self) -> None:
        """Free its memory; no request may be under way."""
        self.session.close()


def read_signatures(path: Path, tags: tuple[str, ...]) -> dict[str, Any]:
    """The SignatureDefs of a SavedModel's meta graph. Raises ServingError with the C++ loader's texts."""
    file = path / "saved_model.pb"
    try:
        model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    except FileNotFoundError as error:
        raise ServingError(
            Code.NOT_FOUND,
            "Specified file path does not appear to contain a SavedModel bundle (should have a file called "
            f"`saved_model.pb`)\nSpecified file path: {path}",
        ) from error
    except DecodeError as error:
        raise ServingError(Code.DATA_LOSS, f"Can't parse {file} as binary proto") from error
    except OSError as error:
        raise ServingError(Code.UNKNOWN, f"{file}; {error.strerror}") from error
    for graph in model.meta_graphs:
        if set(graph.meta_info_def.tags) == set(tags):
            # Copies: a reference into the parsed file would keep all of it, constants included, in memory.
            return {
                name: meta_graph_pb2.SignatureDef.FromString(signature.SerializeToString())
                for name, signature in graph.signature_def.items()
            }
    raise ServingError(
        Code.NOT_FOUND,
        f"Could not find meta graph def matching supplied tags: {{ {' '.join(tags)} }}. To inspect available tag-sets "
        "in the SavedModel, please use the SavedModel CLI: `saved_model_cli`",
    )


def read_warmup_records(file: Path) -> Iterator[Any]:
    """PredictionLogs of a TFRecord file (length, its checksum, data, its checksum); none if there is no file.

    Checksums are not verified. Raises ServingError on a file that is cut off or holds something else.
    """
    if not file.exists():
        return
    with file.open("rb") as records:
        while header := records.read(12):
            try:
                (length,) = struct.unpack("<Q4x", header)
                data = records.read(length)
                if len(data) != length or len(records.read(4)) != 4:
                    raise EOFError
                yield prediction_log_pb2.PredictionLog.FromString(data)
            except (struct.error, EOFError, DecodeError, OverflowError) as error:
                raise ServingError(Code.DATA_LOSS, f"Failed to parse a warm-up record of {file}") from error
