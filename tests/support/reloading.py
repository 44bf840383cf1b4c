"""Reconfigure a real model server, and wait for the states that it goes through."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import text_format

from model_server.messages import get_model_status_pb2, model_management_pb2
from tests.support.model_server import ModelServer
from tests.support.waiting import eventually

NAMES = {10: "START", 20: "LOADING", 30: "AVAILABLE", 40: "UNLOADING", 50: "END"}


def config(name: str, base: Path | str, policy: str = "", *, labels: str = "", platform: str = "tensorflow") -> str:
    """One ModelConfig; `policy` "1 2" is specific versions, "-" none at all; `labels` "stable=1 canary=2"."""
    versions = " ".join(f"versions: {version}" for version in policy.split() if version != "-")
    parts = [f'name: "{name}" base_path: "{base}"', f'model_platform: "{platform}"' if platform else ""]
    parts += [f"model_version_policy {{ specific {{ {versions} }} }}" if policy else ""]
    parts += [
        f'version_labels {{ key: "{label.split("=")[0]}" value: {label.split("=")[1]} }}' for label in labels.split()
    ]
    return f"config {{ {' '.join(parts)} }}"


def reload(server: ModelServer, *configs: str, timeout: float = 20) -> None:
    request = model_management_pb2.ReloadConfigRequest()
    text_format.Parse(f"config {{ model_config_list {{ {' '.join(configs)} }} }}", request)
    response = server.models.HandleReloadConfigRequest(request, timeout=timeout)
    assert response.HasField("status")
    assert response.status.error_code == 0


def states(server: ModelServer, model: str) -> str:
    """`2=AVAILABLE 1=END(15:…)`, newest first; empty for NOT_FOUND."""
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = model
    try:
        response = server.models.GetModelStatus(request, timeout=5)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        return ""
    return " ".join(
        f"{one.version}={NAMES[one.state]}"
        + (f"({one.status.error_code}:{one.status.error_message})" if one.status.error_code else "")
        for one in response.model_version_status
    )


async def reach(server: ModelServer, model: str, wanted: str) -> None:
    await eventually(lambda: states(server, model) == wanted, f"{model} {wanted}")


@contextlib.contextmanager
def trace(server: ModelServer, model: str, every: float = 0.005) -> Iterator[list[str]]:
    """Collect the distinct states in a row, as a monitor that polls every 5 ms sees them."""
    seen: list[str] = []
    stop = threading.Event()

    def look() -> None:
        now = states(server, model)
        if not seen or seen[-1] != now:
            seen.append(now)

    def poll() -> None:
        while not stop.wait(every):
            look()

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()
        look()  # what the caller has waited for may have come since the last look


def follows(seen: Sequence[str], *sequence: str) -> None:
    """`seen` is `sequence`, of which those that start with `?` are so short that a busy machine may miss them."""
    rest = iter(one.removeprefix("?") for one in sequence)
    strange = [one for one in seen if one not in rest]
    assert not strange, f"{strange} not, or not in this order, expected in {list(seen)}"
    missed = [one for one in sequence if not one.startswith("?") and one not in seen]
    assert not missed, f"{missed} not in {list(seen)}"


def error_of(call: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code().name, caught.value.details()
