"""Tells the registry how busy the server is, as its Prometheus page says. Invariant: at most one write in `interval`
and only of what has changed; a server without such a page, or one that is silent, costs a try now and then and nothing
else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from monitor.server_metrics import PATH, Totals, load_between, read_page
from registry.addresses import join_address
from registry.loads import encode_load

log = logging.getLogger(__name__)

TIMEOUT = 2.0
LARGEST_PAGE = 32 * 2**20
"""Bytes; a thousand models' histograms take a quarter of this."""
TRY_AGAIN = 60.0
"""Seconds until a server that has no such page is asked again."""
_COST_SHARE = 0.005
"""Of the time that may be spent on reading pages: long ones are read less often."""


class NoPageError(Exception):
    """There is no such page, or it can't be had now; `absent`: the server says so itself."""

    def __init__(self, reason: str, *, absent: bool = False) -> None:
        super().__init__(reason)
        self.absent = absent


class LoadWatch:
    """`run` belongs to the caller's group. `write` puts the record, or deletes it (None)."""

    def __init__(
        self, instance: str, host: str, rest_port: int, interval: float, write: Callable[[bytes | None], None]
    ) -> None:
        self._instance = instance
        self._host, self._port = host, rest_port
        self._interval = interval
        self._write = write
        self._written: bytes | None = None
        self._said = ""

    async def run(self) -> None:
        """Until cancelled."""
        before: tuple[Totals, float] | None = None
        clock = asyncio.get_running_loop().time
        while True:
            pause = self._interval
            try:
                page = await fetch(self._host, self._port)
            except NoPageError as error:
                before = None
                self._publish(None)
                self._say(f"has no page of metrics to tell its load from ({error})" if error.absent else "")
                pause = TRY_AGAIN if error.absent else pause
            else:
                now = clock()
                totals = read_page(page)
                pause = max(pause, (clock() - now) / _COST_SHARE)
                if before is not None:
                    self._publish(encode_load(load_between(before[0], totals, now - before[1])))
                before = totals, now
                self._say("tells its load")
            await asyncio.sleep(pause)

    def _publish(self, record: bytes | None) -> None:
        if record != self._written:
            self._written = record
            self._write(record)

    def _say(self, what: str) -> None:
        if what and what != self._said:
            self._said = what
            where = f"{join_address(self._host, self._port)}{PATH}"
            log.info("instance %s: the server %s, at %s", self._instance, what, where)


async def fetch(host: str, port: int) -> bytes:
    """The page. Raises NoPageError."""
    try:
        async with asyncio.timeout(TIMEOUT):
            reader, writer = await asyncio.open_connection(host, port, limit=1 << 20)
            try:
                # 1.0, so that the body comes as it is, and ends with the connection.
                writer.write(f"GET {PATH} HTTP/1.0\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                head = await reader.readuntil(b"\r\n\r\n")
                status = head.split(maxsplit=2)[1]
                if status != b"200":
                    raise NoPageError(f"HTTP status {status.decode(errors='replace')}", absent=True)
                chunks, size = [], 0
                while (chunk := await reader.read(1 << 20)) and size <= LARGEST_PAGE:
                    chunks.append(chunk)
                    size += len(chunk)
            finally:
                writer.close()
    except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, IndexError) as error:
        raise NoPageError(str(error) or type(error).__name__) from error
    if size > LARGEST_PAGE:
        raise NoPageError(f"more than {LARGEST_PAGE >> 20} MiB", absent=True)
    return b"".join(chunks)
