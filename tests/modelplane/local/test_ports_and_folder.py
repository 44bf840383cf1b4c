"""Busy ports are named with who holds them and the flag that mends it; a state folder is used once."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from modelplane.errors import UserError
from modelplane.local.folder import Stack, StateFolder, running_stack
from modelplane.local.ports import Wanted, any_free, assign, holder, is_free
from tests.support.processes import free_port


def test_a_busy_port_is_named_with_its_holder_and_its_flag() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        assert not is_free("127.0.0.1", port)
        with pytest.raises(UserError) as caught:
            assign([Wanted("grpc", "--grpc-port", port), Wanted("rest", "--rest-port", 0)])
    name = Path("/proc/self/comm").read_text().strip()
    assert str(caught.value) == (
        f"port {port} (grpc) is taken by {name} (pid {os.getpid()}); choose another with --grpc-port"
    )
    assert is_free("127.0.0.1", port)
    assert holder(port) is None


def test_a_port_shared_with_so_reuseport_is_busy_too() -> None:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        server.bind(("127.0.0.1", 0))
        server.listen()
        assert not is_free("127.0.0.1", server.getsockname()[1])


def test_all_busy_ports_are_named_at_once() -> None:
    with socket.socket() as one, socket.socket() as two:
        for server in (one, two):
            server.bind(("127.0.0.1", 0))
            server.listen()
        wanted = [
            Wanted(name, f"--{name}-port", server.getsockname()[1]) for name, server in (("grpc", one), ("rest", two))
        ]
        with pytest.raises(UserError, match=r"--grpc-port; port .*--rest-port"):
            assign(wanted)


def test_one_port_wanted_twice() -> None:
    port = free_port()
    with pytest.raises(UserError, match=f"rest and grpc both want port {port}; choose another with --rest-port"):
        assign([Wanted("grpc", "--grpc-port", port), Wanted("rest", "--rest-port", port)])


def test_free_ports_differ() -> None:
    chosen = assign([Wanted(str(number), "", 0) for number in range(30)])
    assert len(set(chosen.values())) == 30


def test_no_free_port_at_all() -> None:
    with pytest.raises(UserError, match="no free port"):
        any_free(free=lambda host, port: False)


def test_an_address_that_is_not_ours() -> None:
    with pytest.raises(UserError, match=r"can't listen on 192\.0\.2\.1: .*--listen"):
        assign([Wanted("grpc", "--grpc-port", free_port(), "192.0.2.1")])


def test_a_folder_is_used_once_at_a_time(tmp_path: Path) -> None:
    with StateFolder(tmp_path / "state") as folder, pytest.raises(UserError) as caught, StateFolder(tmp_path / "state"):
        pass
    assert str(caught.value) == (
        f"{folder.path} is in use by another `modelplane up` (pid {os.getpid()}); "
        "end that one, or choose another folder with --state"
    )
    with StateFolder(tmp_path / "state"):
        pass


def test_a_fresh_start_keeps_models_and_nothing_else(tmp_path: Path) -> None:
    with StateFolder(tmp_path) as folder:
        folder.etcd.mkdir()
        (folder.logs / "etcd.log").touch()
        (folder.models / "digits").mkdir()
        (folder.models / ".building-x").mkdir()
    with StateFolder(tmp_path) as folder:
        assert not folder.etcd.exists()
        assert list(folder.logs.iterdir()) == []
        assert [child.name for child in folder.models.iterdir()] == ["digits"]
        assert (tmp_path / ".gitignore").read_text() == "*\n"


def test_a_folder_of_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "theirs").touch()
    with pytest.raises(UserError, match=r"holds files that are not of `modelplane up`.*--state"), StateFolder(tmp_path):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["logs", "theirs"]


def test_etcds_data_is_kept_when_asked_for(tmp_path: Path) -> None:
    with StateFolder(tmp_path) as folder:
        folder.etcd.mkdir()
    with StateFolder(tmp_path, keep=True) as folder:
        assert folder.etcd.exists()


def test_a_stack_is_announced_while_it_runs(tmp_path: Path) -> None:
    stack = Stack("127.0.0.1:2379", "/modelplane/", 1)
    with StateFolder(tmp_path) as folder:
        assert running_stack(tmp_path) is None
        folder.announce(stack)
        assert running_stack(tmp_path) == stack
    assert running_stack(tmp_path) is None


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for state in (tmp_path / "file" / "state", tmp_path / "loop"):
        with pytest.raises(UserError, match=rf"can't use {state}: .*--state"), StateFolder(state):
            pass
        assert running_stack(state) is None
