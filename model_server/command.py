"""`modelplane model-server`: start, wait for the models, open the ports, serve until killed.

Invariant: the ports open only when the newest version of every configured model is AVAILABLE. SIGTERM and SIGINT kill
at once, without a drain, like the real server: draining is the monitor's work.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from model_server.errors import Code, ServingError, invalid
from model_server.flags import Flags, UsageError, parse, usage

log = logging.getLogger(__name__)
FAILURE = 255  # what tensorflow_model_server's `return -1` becomes


def main(argv: Sequence[str]) -> int:
    """Serve; the exit code. Returns only if it can't start (or was asked for help)."""
    if "--help" in argv or "-h" in argv:
        print(usage())  # noqa: T201
        return 0
    try:
        flags = parse(argv)
    except UsageError as error:
        print(f"{error}; modelplane model-server --help lists all flags", file=sys.stderr)  # noqa: T201
        return FAILURE
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    if not logging.getLogger().handlers:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    try:
        return _version() if flags.version else _serve(flags)
    except (ServingError, RuntimeError, ModuleNotFoundError, FileNotFoundError) as error:
        print(f"Failed to start server. Error: {error}", flush=True)  # noqa: T201
        if threading.active_count() > 1:
            # A load may be under way inside TensorFlow, which the interpreter's own way out would pull from under it.
            os._exit(FAILURE)
        return FAILURE


def _version() -> int:
    from model_server.libtensorflow import library

    tensorflow = library().TF_Version().decode()
    print(f"modelplane model-server: {version('modelplane')}\nTensorFlow Library: {tensorflow}")  # noqa: T201
    return 0


def _serve(flags: Flags) -> int:
    # Not above: --help must not wait for TensorFlow, nor need it.
    from model_server import grpc_api, rest_api
    from model_server.manager import Manager, ManagerOptions
    from model_server.metrics import Metrics
    from model_server.models import Models

    metrics = Metrics(_metrics_path(flags))
    config = _initial_config(flags)
    options = ManagerOptions(
        file_system_poll_wait=flags.file_system_poll_wait_seconds,
        max_num_load_retries=flags.max_num_load_retries,
        load_retry_interval=flags.load_retry_interval_micros / 1e6,
        num_load_threads=flags.num_load_threads,
    )
    models = Models(
        Manager(options, _loader(flags)),
        options,
        allow_labels_for_unavailable=flags.allow_version_labels_for_unavailable_models,
    )
    models.start(config)
    address = f"{flags.bind_address}:{flags.port}"
    server = grpc_api.serve(
        models, address, _channel_arguments(flags), metrics, health=flags.enable_grpc_healthcheck_service
    )
    log.info("Running gRPC ModelServer at %s ...", address)
    if flags.rest_api_port:
        rest_api.serve(models, flags.bind_address, flags.rest_api_port, flags.rest_api_timeout_in_ms / 1000, metrics)
        log.info("Exporting HTTP/REST API at:%s:%d ...", flags.bind_address, flags.rest_api_port)
    if flags.model_config_file and flags.model_config_file_poll_wait_seconds > 0:
        threading.Thread(target=_follow_config_file, args=(flags, models), daemon=True).start()
    server.wait_for_termination()
    return 0


def _loader(flags: Flags) -> Any:
    from model_server import inference
    from model_server.libtensorflow import library
    from model_server.messages import config_pb2
    from model_server.saved_model import SavedModel

    library()
    both = flags.tensorflow_session_parallelism
    config = config_pb2.ConfigProto(
        intra_op_parallelism_threads=flags.tensorflow_intra_op_parallelism or both,
        inter_op_parallelism_threads=flags.tensorflow_inter_op_parallelism or both,
        allow_soft_placement=True,
    ).SerializeToString()
    tags = tuple(flags.saved_model_tags.split(","))

    def load(path: Path) -> SavedModel:
        model = SavedModel(path, tags, config)
        if flags.enable_model_warmup:
            try:
                model.warm_up(path, inference.replay, flags.num_request_iterations_for_warmup)
            except Exception:
                # Whatever a record did: each of the retries to come would keep a session more.
                model.close()
                raise
        return model

    return load


def _channel_arguments(flags: Flags) -> list[tuple[str, str | int]]:
    arguments: list[tuple[str, str | int]] = []
    for item in filter(None, flags.grpc_channel_arguments.split(",")):
        name, _, value = item.partition("=")
        arguments.append((name, int(value) if value.lstrip("-").isdigit() else value))
    return arguments


def _initial_config(flags: Flags) -> Any:
    from model_server.messages import model_server_config_pb2

    if flags.model_config_file:
        return read_config_file(Path(flags.model_config_file))
    if not flags.model_base_path:
        raise invalid(
            "neither --model_base_path nor --model_config_file is set; say which model to serve with "
            "--model_base_path=/absolute/path"
        )
    config = model_server_config_pb2.ModelServerConfig()
    config.model_config_list.config.add(
        name=flags.model_name, base_path=flags.model_base_path, model_platform="tensorflow"
    )
    return config


def _metrics_path(flags: Flags) -> str:
    from model_server.metrics import page_path

    if not flags.monitoring_config_file:
        return ""
    path = Path(flags.monitoring_config_file)
    try:
        return page_path(path.read_text())
    except OSError as error:
        raise ServingError(Code.NOT_FOUND, f"{path}; {os.strerror(error.errno or 0)}") from error


def read_config_file(path: Path) -> Any:
    """A ModelServerConfig from its text format. Raises ServingError with the real server's texts."""
    from google.protobuf import text_format

    from model_server.messages import model_server_config_pb2

    try:
        text = path.read_text()
    except OSError as error:
        raise ServingError(Code.NOT_FOUND, f"{path}; {os.strerror(error.errno or 0)}") from error
    if not text:
        raise invalid(f"{path}; Invalid argument")
    try:
        return text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    except text_format.ParseError as error:
        raise invalid(f"Invalid protobuf file: '{path}'") from error


def _follow_config_file(flags: Flags, models: Any) -> None:
    path = Path(flags.model_config_file)
    while True:
        time.sleep(flags.model_config_file_poll_wait_seconds)
        try:
            config = read_config_file(path)
        except (ServingError, UnicodeDecodeError) as error:
            log.error("Failed to read ModelServerConfig file: %s", error)
            continue
        try:
            models.reload(config)
        except ServingError as error:
            log.error("Failed to reload the config file %s: %s", path, error)
