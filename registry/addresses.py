"""HOST:PORT as every room reads and writes it. Invariant: `split_address(join_address(host, port)) == (host, port)`."""

from __future__ import annotations

import socket

_NOT_IN_A_HOST = frozenset("[]{},#'\"/")


def split_address(text: str) -> tuple[str, int]:
    """HOST:PORT in its two parts; an IPv6 address stands in brackets, and loses them. Raises ValueError that names the
    text and what is wrong with it."""
    host, colon, port = text.rpartition(":")
    if not colon or not host:
        raise ValueError(f"{text!r} is not HOST:PORT")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise ValueError(f"{text!r} is not HOST:PORT: {port!r} is not a TCP port (1 to 65535)")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r} is not HOST:PORT: an IPv6 address needs brackets, as in [::1]:8500")
    if not host or any(character.isspace() or character in _NOT_IN_A_HOST for character in host):
        raise ValueError(f"{text!r} is not HOST:PORT: {host!r} is no host")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """HOST:PORT, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def source_address(host: str, port: int) -> str | None:
    """The address that the kernel would send from to an IP address; None without a way there. Sends nothing: that is
    what connecting a UDP socket amounts to."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((host, port))
            return str(probe.getsockname()[0])
    except OSError:
        return None


def is_here(address: str) -> bool:
    """Whether the IP address is one of this machine's (or network namespace's) now: a socket can be bound to it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
            return True
    except OSError:
        return False
