"""tensorflow_model_server's command line: its flags, its defaults, its spelling (`--name=value`, `--name` for true).

Invariant: a flag that the real server has is never refused; one that has no meaning here is accepted and ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any


class UsageError(ValueError):
    """The command line can't be read; the message names the argument."""


def _flag(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True, slots=True)
class Flags:
    """One field per flag. Times are seconds where the name doesn't say otherwise."""

    port: int = _flag(8500, "TCP port for gRPC")
    rest_api_port: int = _flag(0, "TCP port for REST; 0: none")
    bind_address: str = _flag("0.0.0.0", "address that both ports listen on (not a flag of the real server)")
    rest_api_timeout_in_ms: int = _flag(30000, "how long one REST request may take")
    model_name: str = _flag("default", "name of the model under --model_base_path; ignored with --model_config_file")
    model_base_path: str = _flag("", "absolute path of the folder that holds the version folders")
    model_config_file: str = _flag("", "a ModelServerConfig in protobuf's text format, for several models")
    model_config_file_poll_wait_seconds: int = _flag(0, "how often to read that file again; 0: only once")
    file_system_poll_wait_seconds: int = _flag(1, "how often to look for new versions; 0: once, -1: never")
    max_num_load_retries: int = _flag(5, "how often a failed load is tried again")
    load_retry_interval_micros: int = _flag(60_000_000, "microseconds between two tries")
    num_load_threads: int = _flag(0, "loads that run at once; 0: one, in the manager's own thread")
    enable_model_warmup: bool = _flag(True, "replay assets.extra/tf_serving_warmup_requests before AVAILABLE")
    num_request_iterations_for_warmup: int = _flag(1, "how often each warm-up record is replayed")
    saved_model_tags: str = _flag("serve", "comma-separated tags of the meta graph to load")
    allow_version_labels_for_unavailable_models: bool = _flag(False, "a new label may point at a version not loaded")
    enable_grpc_healthcheck_service: bool = _flag(False, "serve grpc.health.v1")
    grpc_channel_arguments: str = _flag("", "comma-separated name=value gRPC channel arguments")
    tensorflow_session_parallelism: int = _flag(0, "threads for each of the two below; 0: as many as cores")
    tensorflow_intra_op_parallelism: int = _flag(0, "threads inside one operation; 0: as many as cores")
    tensorflow_inter_op_parallelism: int = _flag(0, "threads for independent operations; 0: as many as cores")
    monitoring_config_file: str = _flag("", "a MonitoringConfig in protobuf's text format: a Prometheus page, for REST")
    version: bool = _flag(False, "print the version and exit")


# Batching, TLS, GPU memory, monitoring …: flags of the real server without a counterpart here.
IGNORED = frozenset(
    {
        "batching_parameters_file",
        "enable_batching",
        "enable_cors_support",
        "enable_profiler",
        "enable_signature_method_name_check",
        "enable_per_model_batching_parameters",
        "flush_filesystem_caches",
        "grpc_max_threads",
        "grpc_socket_path",
        "mixed_precision",
        "num_tflite_interpreters_per_pool",
        "num_tflite_pools",
        "num_unload_threads",
        "per_process_gpu_memory_fraction",
        "platform_config_file",
        "prefer_tflite_model",
        "remove_unused_fields_from_bundle_metagraph",
        "rest_api_enable_cors_support",
        "rest_api_num_threads",
        "skip_initialize_tpu",
        "ssl_config_file",
        "tensorflow_gpu_memory_allocator",
        "thread_pool_factory_config_file",
        "use_alts_credentials",
        "use_tflite_model",
        "xla_cpu_compilation_enabled",
    }
)


def parse(argv: Sequence[str]) -> Flags:
    """Read the arguments after the program's name. Raises UsageError."""
    known = {one.name: one for one in fields(Flags)}
    values: dict[str, Any] = {}
    for argument in argv:
        name, equals, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or (name not in known and name not in IGNORED):
            raise UsageError(f"unknown argument: {argument}")
        if name in IGNORED:
            continue
        values[name] = _read(name, known[name].default, text if equals else None)
    return Flags(**values)


def _read(name: str, default: Any, text: str | None) -> Any:
    if isinstance(default, bool):
        if text in (None, "true", "True", "1"):
            return True
        if text in ("false", "False", "0"):
            return False
        raise UsageError(f"--{name}={text}: neither true nor false")
    if text is None:
        raise UsageError(f"--{name} needs a value: --{name}={default or '…'}")
    if isinstance(default, int):
        try:
            return int(text)
        except ValueError:
            raise UsageError(f"--{name}={text}: not a whole number") from None
    return text


def usage() -> str:
    """What `--help` prints."""
    lines = [
        "usage: modelplane model-server [--FLAG=VALUE …]",
        "",
        "A stand-in for tensorflow_model_server: TF Serving's gRPC and REST API and its version lifecycle on",
        "TensorFlow's own runtime. Example, for a folder /models/half_plus_two/1 that holds a saved_model.pb:",
        "",
        "  modelplane model-server --port=8500 --model_name=half_plus_two --model_base_path=/models/half_plus_two",
        "",
        "Flags (a true/false flag may stand alone; other flags of tensorflow_model_server are accepted and ignored):",
    ]
    for one in fields(Flags):
        default = str(one.default).lower() if isinstance(one.default, bool) else one.default
        lines.append(f"  --{one.name}={default}")
        lines.append(f"        {one.metadata['help']}")
    return "\n".join(lines)
