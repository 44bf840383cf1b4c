"""tensorflow_model_server's flags, and a command line that teaches."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from model_server.command import FAILURE, main
from model_server.flags import Flags, UsageError, parse, usage
from tests.support.processes import free_port


def test_defaults_are_the_real_servers() -> None:
    flags = parse([])
    assert (flags.port, flags.rest_api_port, flags.model_name) == (8500, 0, "default")
    assert (flags.file_system_poll_wait_seconds, flags.max_num_load_retries) == (1, 5)
    assert (flags.load_retry_interval_micros, flags.num_load_threads) == (60_000_000, 0)
    assert flags.enable_model_warmup
    assert not flags.enable_grpc_healthcheck_service


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("--enable_model_warmup=false", False),
        ("--enable_model_warmup=true", True),
        ("--enable_model_warmup", True),
        ("--enable_model_warmup=0", False),
        ("--enable_model_warmup=1", True),
    ],
)
def test_booleans(argument: str, value: bool) -> None:
    assert parse([argument]).enable_model_warmup is value


def test_flags_without_a_meaning_here_are_accepted() -> None:
    assert parse(["--enable_batching=true", "--ssl_config_file=/x", "--grpc_max_threads=4"]) == Flags()


@pytest.mark.parametrize(
    "argument", ["--prot=1", "--port", "--port=x", "-port=1", "8500", "--enable_model_warmup=perhaps", "--x=true"]
)
def test_refuses_what_it_does_not_know(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=re.escape(argument)):
        parse([argument])
    assert main([argument]) == FAILURE
    error = capsys.readouterr().err
    assert argument in error
    assert error.endswith("; modelplane model-server --help lists all flags\n")
    assert error.count("\n") == 1


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.strip() == usage()
    assert all(f"--{name}=" in printed for name in Flags.__dataclass_fields__)


def test_no_model_says_what_to_set() -> None:
    # A process of its own, for it ends with os._exit where there are other threads.
    command = [sys.executable, "-m", "model_server", f"--port={free_port()}"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert said.returncode == FAILURE
    assert "--model_base_path=/absolute/path" in said.stdout
