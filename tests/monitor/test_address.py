"""Which address is advertised. Resolves nothing but localhost and numbers; sends nothing."""

from __future__ import annotations

import asyncio
import socket

import pytest

from monitor import address
from monitor.address import advertised_address
from registry.etcd import EtcdConfig

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
