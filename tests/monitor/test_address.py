"""Which address is advertised. Resolves nothing but localhost and numbers; sends nothing."""

from __future__ import annotations

import asyncio
import socket

import pytest

from monitor import address
from monitor.address import advertised_address, moved
from registry.etcd import EtcdConfig
from tests.support.waiting import eventually

HERE = ("127.0.0.1:2379",)


@pytest.mark.parametrize(
    ("wanted", "target", "etcd", "expected"),
    [
        (None, "10.1.2.3", HERE, "10.1.2.3"),
        ("10.9.9.9", "127.0.0.1", HERE, "10.9.9.9"),
        ("localhost", "10.1.2.3", HERE, "127.0.0.1"),
        (None, "127.0.0.1", HERE, "127.0.0.1"),
        (None, "localhost", ("http://localhost:2379",), "127.0.0.1"),
        (None, "::1", ("https://[::1]:2379",), "::1"),
    ],
)
async def test_what_is_advertised(wanted: str | None, target: str, etcd: tuple[str, ...], expected: str) -> None:
    assert await advertised_address(wanted, target, EtcdConfig(etcd).addresses) == expected


async def test_a_server_here_and_etcd_elsewhere_is_reached_from_where_we_reach_etcd() -> None:
    # 192.0.2.0/24 is reserved for documentation: nobody answers, but the kernel has (or lacks) a route all the same.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 2379))
            expected = probe.getsockname()[0]
        except OSError:
            expected = "127.0.0.1"
    assert await advertised_address(None, "127.0.0.1", ("192.0.2.1:2379",)) == expected


async def test_a_name_that_does_not_resolve_yet_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(address, "_RETRY", 0.001)
    loop = asyncio.get_running_loop()
    real, failures = loop.getaddrinfo, [socket.gaierror(-3, "Temporary failure in name resolution")] * 3

    async def getaddrinfo(host: str, *args: object, **kwargs: object) -> object:
        if failures:
            raise failures.pop()
        return await real("10.1.2.3", *args, **kwargs)

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    assert await advertised_address(None, "tfs", HERE) == "10.1.2.3"
    assert [record.getMessage() for record in caplog.records] == [
        "address tfs can't be resolved, trying again: Temporary failure in name resolution"
    ]


class Names:
    """A resolver that knows what the test says of the name "tfs"."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(address, "_LOOK", 0.001)
        monkeypatch.setattr(address, "_RETRY", 0.001)
        loop = asyncio.get_running_loop()
        self._real = loop.getaddrinfo
        self.tfs: tuple[str, ...] = ("10.1.2.3",)
        self.asked = 0
        monkeypatch.setattr(loop, "getaddrinfo", self._getaddrinfo)

    async def _getaddrinfo(self, host: str, *args: object, **kwargs: object) -> object:
        if host != "tfs":
            return await self._real(host, *args, **kwargs)  # type: ignore[arg-type]
        self.asked += 1
        if not self.tfs:
            raise socket.gaierror(-3, "Temporary failure in name resolution")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, 0)) for one in self.tfs]

    async def asked_more(self) -> None:
        """Until somebody has asked, and used, what is said now."""
        before = self.asked
        await eventually(lambda: self.asked > before + 1, "two more questions")


@pytest.mark.parametrize(("wanted", "target"), [("tfs", "127.0.0.1"), (None, "tfs")])
async def test_a_name_moves_only_when_its_address_is_none_of_its_own_any_more(
    monkeypatch: pytest.MonkeyPatch, wanted: str | None, target: str
) -> None:
    names = Names(monkeypatch)
    moving = asyncio.create_task(moved("10.1.2.3", wanted, target, HERE))
    names.tfs = ("10.0.0.1", "10.1.2.3")
    await names.asked_more()
    names.tfs = ()
    await names.asked_more()
    assert not moving.done()
    names.tfs = ("10.0.0.1",)
    assert await moving == "10.0.0.1"


async def test_this_machines_own_address_moves_when_it_has_another_way_to_etcd(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch)
    here: set[str] = {"10.0.0.1"}
    ways: list[str | None] = [None]
    looks: list[str] = []

    def is_here(one: str) -> bool:
        looks.append(one)
        return one in here

    monkeypatch.setattr(address, "is_here", is_here)
    monkeypatch.setattr(address, "source_address", lambda host, port: ways[0])
    moving = asyncio.create_task(moved("10.0.0.1", None, "127.0.0.1", ("tfs:2379",)))
    # The network is gone, and comes back with the same address: nothing has moved.
    here.clear()
    await names.asked_more()
    here.add("10.0.0.1")
    ways[0] = "10.0.0.1"
    before = len(looks)
    await eventually(lambda: len(looks) > before + 2, "more looks")
    assert not moving.done()
    here.clear()
    ways[0] = "10.0.0.2"
    assert await moving == "10.0.0.2"


@pytest.mark.parametrize(("wanted", "target"), [("10.9.9.9", "127.0.0.1"), (None, "10.1.2.3")])
async def test_a_number_never_moves(monkeypatch: pytest.MonkeyPatch, wanted: str | None, target: str) -> None:
    Names(monkeypatch)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await moved("10.1.2.3", wanted, target, HERE)
