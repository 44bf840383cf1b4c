"""What a replica says of where its HTTP port is. Resolves nothing but localhost and numbers; sends nothing."""

from __future__ import annotations

import socket

import pytest

from control_plane.advertise import advertised
from control_plane.config import ControlPlaneConfig

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


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(ValueError, match=r"http_advertise: 'nowhere' is not HOST:PORT"):
        ControlPlaneConfig(http_advertise="nowhere")
