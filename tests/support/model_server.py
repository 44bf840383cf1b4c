"""A real `modelplane model-server` process for a test."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from tests.support.processes import ChildProcess, free_port, wait_for_port
from tests.support.saved_models import model_service_pb2_grpc, predict_request, prediction_service_pb2_grpc


class ModelServer:
    """One server on free ports of 127.0.0.1, with the official client's stubs on one channel.

    `flags` are added to the defaults (gRPC and REST port, loopback, polls of 1 s, no retries) and override them.
    Returns when the gRPC port is open, so all models are loaded; `wait=False` doesn't wait. A context manager.
    """

    def __init__(self, log: Path, *flags: str, wait: bool = True, timeout: float = 60.0) -> None:
        self.port, self.rest_port = free_port(), free_port()
        self.child = ChildProcess(
            [
                *(sys.executable, "-m", "model_server"),
                *(f"--port={self.port}", f"--rest_api_port={self.rest_port}", "--bind_address=127.0.0.1"),
                *("--max_num_load_retries=0", *flags),
            ],
            log,
        )
        self.channel = grpc.insecure_channel(
            self.address,
            [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
        )
        self.predictions = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(self.channel)
        if wait:
            try:
                wait_for_port(self.port, self.child, timeout)
                if "--rest_api_port=0" not in flags:
                    wait_for_port(self.rest_port, self.child, timeout)
            except AssertionError:
                self.close()
                raise

    @classmethod
    def of(cls, log: Path, models: dict[str, Path], *flags: str, policy: str = "") -> ModelServer:
        """Serve several models (name to base path), all with one policy in text format (`all { }`), by a config file
        that is written beside the log."""
        config = log.with_suffix(".config")
        config.write_text(model_config(models, policy))
        return cls(log, f"--model_config_file={config}", *flags)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def predict(self, model: str, x: float, version: int | None = None, timeout: float = 10.0) -> float:
        """Ask half_plus_two (or a model of its shape) for one number."""
        response: Any = self.predictions.Predict(predict_request(model, [x], version), timeout)
        return float(response.outputs["y"].float_val[0])

    def close(self) -> None:
        self.channel.close()
        self.child.stop()

    def __enter__(self) -> ModelServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.channel.close()
        self.child.__exit__(kind, error, trace)


def model_config(models: Mapping[str, Path], policy: str = "") -> str:
    """A ModelServerConfig in text format."""
    chosen = f"model_version_policy {{ {policy} }}" if policy else ""
    rows = [
        f'config {{ name: "{name}" base_path: "{base}" model_platform: "tensorflow" {chosen} }}'
        for name, base in models.items()
    ]
    return "model_config_list {\n" + "\n".join(rows) + "\n}\n"
