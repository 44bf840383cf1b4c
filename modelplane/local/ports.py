"""Ports: which are free, and who holds the others. Nothing is started before every port is known to be free."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from modelplane.errors import UserError


@dataclass(frozen=True, slots=True)
class Wanted:
    """A port that the stack needs; `number` 0 asks for any free one."""

    name: str
    flag: str
    number: int
    host: str = "127.0.0.1"


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now. Raises OSError for an address that isn't this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do; TIME_WAIT is no obstacle then. Never SO_REUSEPORT: two Envoys would share a port in silence.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            # Two sockets that both set SO_REUSEADDR may be bound to one port until one of them listens.
            probe.listen(1)
        except OSError as error:
            if error.errno in (98, 13):  # EADDRINUSE, EACCES
                return False
            raise
    return True


def any_free(taken: Iterable[int] = (), host: str = "127.0.0.1", free: Callable[[str, int], bool] = is_free) -> int:
    """A free port below the range that the kernel gives to outgoing connections, which could take it again at once."""
    low, high = 20000, _first_ephemeral() - 1
    if high - low < 1000:
        low, high = 1025, 65535
    used = set(taken)
    for _ in range(1000):
        port = random.randint(low, high)
        if port not in used and free(host, port):
            return port
    raise UserError(f"no free port between {low} and {high} on {host}")


def _first_ephemeral() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 32768


def assign(wanted: Iterable[Wanted]) -> dict[str, int]:
    """Choose all ports, by name. Raises UserError that names every busy one, its holder and the flag that mends it."""
    chosen: dict[str, int] = {}
    busy: list[str] = []
    rows = sorted(wanted, key=lambda one: one.number == 0)  # the fixed ones first, so that a free one can't take theirs
    for one in rows:
        if one.number in chosen.values():
            other = next(name for name, port in chosen.items() if port == one.number)
            busy.append(f"{one.name} and {other} both want port {one.number}; choose another with {one.flag}")
            continue
        try:
            usable = one.number != 0 and is_free(one.host, one.number)
        except OSError as error:
            raise UserError(f"can't listen on {one.host}: {error.strerror}; choose another with --listen") from None
        if usable:
            chosen[one.name] = one.number
        elif one.number == 0:
            chosen[one.name] = any_free(chosen.values(), one.host)
        else:
            busy.append(_complaint(one))
    if busy:
        raise UserError("; ".join(busy))
    return chosen


def _complaint(one: Wanted) -> str:
    if one.number < 1024 and os.geteuid() != 0 and holder(one.number) is None:
        return f"port {one.number} ({one.name}) is below 1024 and needs root; choose another with {one.flag}"
    by = holder(one.number)
    return f"port {one.number} ({one.name}) is taken{f' by {by}' if by else ''}; choose another with {one.flag}"


def holder(port: int) -> str | None:
    """`NAME (pid N)` of the process that listens on a port, as far as we may look; None if that can't be told."""
    inodes = _listening_inodes(port)
    if not inodes:
        return None
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and _opened(process) & wanted:
            try:
                return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
            except OSError:
                return f"pid {process.name}"
    return None


def _listening_inodes(port: int) -> set[str]:
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            # sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode; 0A is LISTEN (proc(5))
            columns = row.split()
            if columns[3] == "0A" and int(columns[1].rpartition(":")[2], 16) == port:
                found.add(columns[9])
    return found


def _opened(process: Path) -> set[str]:
    found = set()
    try:
        for link in (process / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                found.add(str(link.readlink()))
    except OSError:
        return found  # it ended, or is somebody else's
    return found
