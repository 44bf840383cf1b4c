"""TF Serving's table of start-ups: when the ports open, and what a server that can't start says. Each test waits for
one server process to open its port or to end."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from model_server.messages import get_model_status_pb2
from tests.support import saved_models
from tests.support.model_server import ModelServer, model_config
from tests.support.processes import wait_for_port
from tests.support.waiting import eventually

pytestmark = pytest.mark.scenario


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_ports_stay_closed_until_every_model_is_available(tmp_path: Path) -> None:
    """Waits for a model of 2 s of warm-up and for a base path that appears late."""
    saved_models.slow_to_load(tmp_path / "late", seconds=2)
    (tmp_path / "config").write_text(model_config({"late": tmp_path / "late", "gone": tmp_path / "gone"}))
    with ModelServer(tmp_path / "log", f"--model_config_file={tmp_path / 'config'}", wait=False) as server:
        text = f"Could not find base path {tmp_path}/gone for servable gone with error NOT_FOUND: {tmp_path}/gone not"
        await eventually(lambda: server.child.output.count(text) >= 2, "two polls that complain")
        saved_models.half_plus_two(tmp_path / "gone")
        await eventually(lambda: "{name: late version: 1}: LOADING" in server.child.output, "the slow load")
        assert not is_open(server.port)
        assert not is_open(server.rest_port)
        await eventually(lambda: is_open(server.port), "the gRPC port")
        assert "{name: late version: 1}: AVAILABLE" in server.child.output
        assert server.predict("late", 1) == server.predict("gone", 1) == 2.5
        # Without its flag there is no health service.
        with pytest.raises(grpc.RpcError) as caught:
            health_pb2_grpc.HealthStub(server.channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_sigterm_kills_at_once_without_a_drain(tmp_path: Path) -> None:
    saved_models.slow(tmp_path / "slow", seconds=20)
    with ModelServer(tmp_path / "log", "--model_name=slow", f"--model_base_path={tmp_path / 'slow'}") as server:
        call = server.predictions.Predict.future(saved_models.predict_request("slow", [1.0]), timeout=30)
        # Answered after the call above has arrived: they share a connection.
        server.models.GetModelStatus(get_model_status_pb2.GetModelStatusRequest(model_spec={"name": "slow"}), timeout=9)
        began = time.monotonic()
        server.child.send(signal.SIGTERM)
        assert server.child.wait(10) == -signal.SIGTERM
        assert time.monotonic() - began < 2
        assert call.code() is grpc.StatusCode.UNAVAILABLE


def broken_model(base: Path) -> str:
    saved_models.corrupt(base / "b")
    saved_models.half_plus_two(base / "good")
    return model_config({"b": base / "b", "good": base / "good"})


def relative_path(base: Path) -> str:
    return model_config({"default": Path("rel/path")})


def labels(base: Path) -> str:
    saved_models.half_plus_two(base / "hpt")
    return model_config({"hpt": base / "hpt"}).replace(
        ' model_platform: "tensorflow"', ' model_platform: "tensorflow" version_labels { key: "stable" value: 1 }'
    )


@pytest.mark.parametrize(
    ("config", "error"),
    [
        (
            broken_model,
            "UNKNOWN: 1 servable(s) did not become available: {{{name: b version: 1} due to error: DATA_LOSS: Can't "
            "parse @/b/1/saved_model.pb as binary proto}, }",
        ),
        (
            relative_path,
            "INVALID_ARGUMENT: Expected model default to have an absolute path or URI; got base_path()=rel/path",
        ),
        (
            labels,
            "FAILED_PRECONDITION: Request to assign label to version 1 of model hpt, which is not currently available "
            "for inference",
        ),
        (lambda _: "", "INVALID_ARGUMENT: @/config; Invalid argument"),
        (lambda _: "garbage {", "INVALID_ARGUMENT: Invalid protobuf file: '@/config'"),
        (None, "NOT_FOUND: @/config; No such file or directory"),
    ],
    ids=["broken model", "relative path", "labels", "empty file", "garbage", "no file"],
)
def test_exits_255(tmp_path: Path, config: object, error: str) -> None:
    if callable(config):
        (tmp_path / "config").write_text(config(tmp_path))
    with ModelServer(tmp_path / "log", f"--model_config_file={tmp_path / 'config'}", wait=False) as server:
        assert server.child.wait(60) == 255
        assert f"Failed to start server. Error: {error.replace('@', str(tmp_path))}\n" in server.child.output


async def test_broken_model_with_retries_left_keeps_the_ports_closed(tmp_path: Path) -> None:
    """Waits for the second of the default's six tries, made 1 s apart, to have failed; repaired, the third succeeds."""
    folder = saved_models.corrupt(tmp_path / "b")
    flags = ["--max_num_load_retries=5", "--load_retry_interval_micros=1000000"]
    args = ["--model_name=b", f"--model_base_path={tmp_path / 'b'}", *flags]
    with ModelServer(tmp_path / "log", *args, wait=False) as server:
        await eventually(lambda: server.child.output.count("load failed") == 2, "two tries")
        assert not is_open(server.port)
        saved_models.repair(folder)
        wait_for_port(server.port, server.child)
        assert server.predict("b", 1) == 2.5


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    saved_models.half_plus_two(tmp_path / "hpt")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        args = ["--model_name=hpt", f"--model_base_path={tmp_path / 'hpt'}", f"--port={port}"]
        with ModelServer(tmp_path / "log", *args, wait=False) as server:
            assert server.child.wait(60) == 255
            assert f"127.0.0.1:{port}" in server.child.output
