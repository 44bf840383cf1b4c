"""What stands behind the measured Envoy: one instance that answers Predict, as cheaply as can be.

By default an Envoy of its own makes every answer itself: it takes the whole request in, like a real server, and gives
back one PredictResponse. gRPC wants trailers, which Envoy's direct_response lacks; its bridge filter for HTTP/1.1
servers adds them, once the response is dressed up as such a server's.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from bench.errors import BenchError
from bench.messages import METHOD, frame, predict_request, predict_response
from modelplane.local.models import Source, config_file, examples_folder
from tests.support.envoy import Envoy
from tests.support.processes import ChildProcess, free_port, wait_for_port
from tests.support.waiting import eventually

KINDS = ("envoy", "model-server")
_EXTENSIONS = "type.googleapis.com/envoy.extensions.filters"
_CONTENT_TYPE = "application/x-bench"
_LARGEST = 128 * 1024**2


@dataclass(frozen=True)
class Upstream:
    """A running instance. It serves every model that it is asked for, or for real those it was started with."""

    port: int
    version: int
    description: str


@contextmanager
def start(kind: str, folder: Path, models: tuple[str, ...], streams: int) -> Iterator[Upstream]:
    """Start one of KINDS; `models` share one SavedModel where it is a real server. `streams`: requests in flight that
    one connection must bear. Raises BenchError."""
    with ExitStack() as stack:
        if kind == "envoy":
            yield _envoy(stack, folder, streams)
        else:
            yield _model_server(stack, folder, models)


def _lua_string(value: bytes) -> str:
    return '"' + "".join(f"\\{byte:03d}" for byte in value) + '"'


def answering_envoy(port: int, admin: int, streams: int) -> str:
    """The bootstrap, as JSON (which is YAML too)."""
    lua = (
        "function envoy_on_response(handle)\n"
        "  local headers = handle:headers()\n"
        f'  headers:replace("content-type", "{_CONTENT_TYPE}")\n'
        '  headers:remove("grpc-status")\n'
        '  headers:remove("grpc-message")\n'
        f"  handle:body(true):setBytes({_lua_string(frame(predict_response()))})\n"
        "end\n"
    )
    filters: dict[str, tuple[str, dict[str, Any]]] = {
        "grpc_http1_reverse_bridge": ("v3.FilterConfig", {"content_type": _CONTENT_TYPE}),
        "buffer": ("v3.Buffer", {"max_request_bytes": _LARGEST}),
        "lua": ("v3.Lua", {"default_source_code": {"inline_string": lua}}),
        "router": ("v3.Router", {"suppress_envoy_headers": True}),
    }
    manager = {
        "@type": f"{_EXTENSIONS}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "upstream",
        "codec_type": "HTTP2",
        "generate_request_id": False,
        "http2_protocol_options": {
            "max_concurrent_streams": max(1024, streams),
            "initial_stream_window_size": 16 * 1024**2,
            "initial_connection_window_size": 64 * 1024**2,
        },
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}],
                }
            ]
        },
        "http_filters": [
            {"name": name, "typed_config": {"@type": f"{_EXTENSIONS}.http.{name}.{kind}", **config}}
            for name, (kind, config) in filters.items()
        ],
    }
    listener = {
        "name": "upstream",
        "enable_reuse_port": False,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    return json.dumps(
        {
            "node": {"id": "upstream", "cluster": "bench"},
            "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin}}},
            "static_resources": {"listeners": [listener]},
        }
    )


def _envoy(stack: ExitStack, folder: Path, streams: int) -> Upstream:
    port, admin = free_port(), free_port()
    envoy = Envoy(folder, answering_envoy(port, admin, streams), admin, name="upstream")
    stack.callback(envoy.close)
    asyncio.run(envoy.ready())
    return Upstream(port, 1, "an Envoy of its own, one worker, that answers by itself")


def _model_server(stack: ExitStack, folder: Path, models: tuple[str, ...]) -> Upstream:
    trained = folder / "models"
    script = examples_folder() / "train.py"
    done = subprocess.run([sys.executable, script, trained], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        raise BenchError(f"{script} failed (extra 'local' installed?):\n{done.stderr[-2000:]}")
    sources = [Source(model, trained / "half_plus_two") for model in models]
    config, port = folder / "models.config", free_port()
    config.write_text(config_file(sources))
    real = shutil.which("tensorflow_model_server")
    command = [real] if real else [sys.executable, "-m", "modelplane", "model-server"]
    child = ChildProcess([*command, f"--port={port}", f"--model_config_file={config}"], folder / "model-server.log")
    stack.callback(child.stop)
    wait_for_port(port, child, 120)
    asyncio.run(eventually(lambda: all(_answers(port, model) for model in models), "the model server's models", 120))
    return Upstream(port, 1, f"{'tensorflow_model_server' if real else 'modelplane model-server'} with half_plus_two")


def _answers(port: int, model: str) -> bool:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            call: Any = channel.unary_unary(METHOD)
            call(predict_request(model, 200), timeout=5)
        except grpc.RpcError:
            return False
    return True
