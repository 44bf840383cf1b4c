"""What a replica says of where its HTTP port is. Resolves nothing but localhost and numbers; sends nothing."""

from __future__ import annotations

import asyncio
import socket

import pytest

from control_plane import advertise
from control_plane.advertise import Advertised, advertised, follow
from control_plane.config import ControlPlaneConfig
from tests.support.waiting import eventually

HERE = ("127.0.0.1:2379",)


@pytest.mark.parametrize(
    ("wanted", "listen", "etcd", "expected"),
    [
        ("plane-0:80", "0.0.0.0:18080", HERE, "plane-0:80"),
        ("", "10.1.2.3:18080", HERE, "10.1.2.3:18080"),
        ("", "localhost:18080", HERE, "localhost:18080"),
        ("", "0.0.0.0:18080", HERE, "127.0.0.1:18080"),
        ("", "0.0.0.0:18080", ("localhost:2379",), "127.0.0.1:18080"),
        ("", "[::]:18080", ("[::1]:2379",), "[::1]:18080"),
        ("", "0.0.0.0:18080", ("nowhere.invalid:2379", "127.0.0.1:2379"), "127.0.0.1:18080"),
        ("", "0.0.0.0:18080", ("nowhere.invalid:2379",), f"{socket.gethostname()}:18080"),
    ],
)
async def test_what_is_advertised(wanted: str, listen: str, etcd: tuple[str, ...], expected: str) -> None:
    assert await advertised(wanted, listen, etcd) == expected


class Host:
    """A machine with the addresses that the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.here: set[str] = {"10.0.0.1"}
        monkeypatch.setattr(advertise, "_LOOK", 0.001)
        monkeypatch.setattr(advertise, "is_here", lambda one: one in self.here)
        monkeypatch.setattr(advertise, "source_address", lambda host, port: next(iter(self.here), None))


async def test_another_address_of_this_host_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch)
    every, one = Advertised("", "0.0.0.0:18080", HERE), Advertised("plane-0:80", "0.0.0.0:18080", HERE)
    assert [await every.look(), await one.look()] == [True, True]
    assert (every.address, one.address) == ("10.0.0.1:18080", "plane-0:80")
    told: list[str] = []
    following = asyncio.create_task(follow((every, one), lambda: told.append(every.address)))
    host.here = {"10.0.0.2"}
    await eventually(lambda: bool(told), "the new address")
    host.here = {"10.0.0.3", "10.0.0.2"}
    assert not await every.look()
    following.cancel()
    assert told == ["10.0.0.2:18080"]
    assert one.address == "plane-0:80"


async def test_without_a_network_what_others_know_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch)
    every = Advertised("", "0.0.0.0:18080", HERE)
    await every.look()
    host.here = set()
    assert not await every.look()
    assert every.address == "10.0.0.1:18080"


async def test_a_name_for_want_of_an_address_gives_way_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch)
    host.here = set()
    every = Advertised("", "0.0.0.0:18080", HERE)
    await every.look()
    assert every.address == f"{socket.gethostname()}:18080"
    host.here = {"10.0.0.1"}
    assert await every.look()
    assert every.address == "10.0.0.1:18080"


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(ValueError, match=r"http_advertise: 'nowhere' is not HOST:PORT"):
        ControlPlaneConfig(http_advertise="nowhere")
