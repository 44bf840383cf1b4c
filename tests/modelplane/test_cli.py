"""Commands, exit codes, error lines and log lines."""

from __future__ import annotations

import errno
import io
import json
import logging
import subprocess
import sys
import types

import pytest

from modelplane import cli
from modelplane.commands.monitor import split_command
from modelplane.errors import UserError, as_user_error
from modelplane.logs import JsonFormatter, TextFormatter


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_command(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in cli.COMMANDS)


def test_unknown_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["moniter"]) == 2
    assert capsys.readouterr().err == "modelplane: error: no command 'moniter'; did you mean monitor?\n"


def test_version_names_ours_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("modelplane 0.")


def run_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    def run(argv: list[str]) -> int:
        raise error

    monkeypatch.setitem(sys.modules, "modelplane.commands.version", types.SimpleNamespace(run=run))
    return cli.main(["version"])


def test_a_users_mistake_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    wrapped = ExceptionGroup("tasks", [ExceptionGroup("inner", [UserError("port 8500 is taken")])])
    assert run_with(monkeypatch, wrapped) == 1
    assert capsys.readouterr().err == "modelplane version: error: port 8500 is taken\n"


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_with(monkeypatch, KeyboardInterrupt()) == 130


def test_anything_else_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        run_with(monkeypatch, ZeroDivisionError())
    mixed = ExceptionGroup("tasks", [UserError("mine"), ZeroDivisionError()])
    assert as_user_error(mixed) is None


def test_a_busy_port_is_a_users_mistake() -> None:
    assert str(as_user_error(OSError(errno.EADDRINUSE, "Address already in use"))) == "Address already in use"
    assert as_user_error(OSError(errno.EIO, "I/O error")) is None


def test_a_services_own_os_error_is_a_users_mistake_and_a_plain_one_is_not() -> None:
    class AddressInUseError(OSError):
        pass

    assert str(as_user_error(AddressInUseError("0.0.0.0:1 is taken"))) == "0.0.0.0:1 is taken"
    assert as_user_error(ConnectionResetError("peer")) is None


def test_the_envoy_bootstrap_names_every_control_plane(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["envoy-bootstrap", "--xds", "plane-0:18000,plane-1:18001", "--node-id", "edge"]) == 0
    out = capsys.readouterr().out
    for part in ("'plane-0', port_value: 18000", "'plane-1', port_value: 18001", "'edge'"):
        assert part in out


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["envoy-bootstrap", "--xds", "nonsense"], 2, "'nonsense' is not HOST:PORT"),
        (["status", "--etcd", "127.0.0.1:1", "--etcd-timeout", "0.5"], 1, "etcd at 127.0.0.1:1 doesn't answer"),
        (
            ["status", "--state", "/nowhere", "--etcd-timeout", "0.5"],
            1,
            "and no `modelplane up` has its state in /nowhere",
        ),
        (["get"], 2, "say what to get; there are models, versions, instances, envoys and quarantine"),
        (["get", "envoi"], 2, "can't get 'envoi'; did you mean envoys?"),
        (["get", "envoys", "-o", "xml"], 2, "--output: 'xml' is none of table, wide, json, yaml"),
        (["get", "envoys", "--control-plane", "plane-0"], 2, "'plane-0' is not HOST:PORT"),
        (["get", "envoys", "--timeout", "0"], 2, "--timeout: 0.0 is not possible"),
        (["xds"], 2, "say what to do: `modelplane xds dump`"),
        (["xds", "dump", "clutser"], 2, "no resource type 'clutser'; did you mean cluster?"),
        (["xds", "dump", "CDS", "a", "b"], 2, "unrecognized arguments: b"),
        (["xds", "dump", "--control-plane", "127.0.0.1:1"], 1, "no control plane answers: 127.0.0.1:1: connection"),
        (["describe", "model"], 2, "say which model"),
        (["describe", "modl", "x"], 2, "'modl' can't be described: `modelplane describe model NAME`"),
        (["up", "--etcd", "127.0.0.1:99999"], 2, "--etcd: '127.0.0.1:99999' is not HOST:PORT"),
        (["monitor", "--lease-ttl", "0"], 2, "(from --lease-ttl)"),
        (["monitor"], 2, "nothing to watch"),
        (["up", "--model", "x=/nowhere"], 1, "--model x=/nowhere: there is no folder /nowhere"),
        (["up", "--grpc-port", "99999"], 2, "--grpc-port: 99999 is no TCP port"),
        (["up", "--instances", "0"], 2, "--instances: 0 is not between 1 and 64"),
        (["up", "--listen", "everywhere"], 2, "--listen: 'everywhere' is no IP address"),
    ],
)
def test_what_a_user_can_get_wrong_is_one_line(
    argv: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == code
    error = capsys.readouterr().err
    assert error.startswith(f"modelplane {argv[0]}: error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--target", "a:1"], (["--target", "a:1"], [])),
        (["--ttl", "3", "--", "server", "--port=1", "--", "x"], (["--ttl", "3"], ["server", "--port=1", "--", "x"])),
        (["--"], ([], [])),
    ],
)
def test_the_servers_command_is_left_alone(argv: list[str], expected: tuple[list[str], list[str]]) -> None:
    assert split_command(argv) == expected


@pytest.mark.parametrize("argv", [["--help"], ["monitor", "--help"], ["control-plane", "--help"]])
def test_services_never_import_tensorflow_nor_yaml(argv: list[str]) -> None:
    code = (
        "import sys; from modelplane.cli import main\n"
        f"try: main({argv!r})\n"
        "except SystemExit: pass\n"
        "unwanted = {'tensorflow', 'tensorflow_serving', 'sklearn', 'yaml'}\n"
        "bad = unwanted & {one.split('.')[0] for one in sys.modules}\n"
        "sys.exit(1 if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def record(message: str) -> logging.LogRecord:
    made = logging.LogRecord("monitor.service", logging.WARNING, __file__, 1, message, ("digits",), None)
    made.created = 0.25
    return made


def test_a_text_log_line() -> None:
    line = TextFormatter(colour=False).format(record("model %s:\nlost"))
    assert line == "1970-01-01T00:00:00.250Z WARNING monitor.service  model digits:\\nlost"
    assert "\x1b[33mWARNING\x1b[0m" in TextFormatter(colour=True).format(record("model %s"))


def test_a_json_log_line() -> None:
    assert json.loads(JsonFormatter().format(record("model %s"))) == {
        "time": "1970-01-01T00:00:00.250Z",
        "level": "warning",
        "logger": "monitor.service",
        "message": "model digits",
    }


def test_no_colours_but_on_a_terminal_that_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from modelplane.logs import colours_wanted

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert colours_wanted(Terminal())
    assert not colours_wanted(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colours_wanted(Terminal())
