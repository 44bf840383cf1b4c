"""etcd's tokens. Invariant: however many calls find that the token has expired, one Authenticate call is under way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)


class TokenSource:
    """Fetches a token when one is needed and none is held; `expire` drops one that etcd refused.

    etcd's simple tokens expire when unused for `--auth-token-ttl` (300 s), and a restarted member has forgotten all.
    """

    def __init__(self, authenticate: Callable[[], Awaitable[str]]) -> None:
        self._authenticate = authenticate
        self._lock = asyncio.Lock()
        self._token: str | None = None

    async def get(self) -> str:
        """The current token, from etcd if need be. Raises what `authenticate` raises, to every caller in turn."""
        async with self._lock:
            if self._token is None:
                self._token = await self._authenticate()
            return self._token

    def expire(self, token: str) -> None:
        """Drop `token`; one that was renewed in the meantime stays."""
        if self._token == token:
            log.info("etcd no longer takes our token; asking for another")
            self._token = None
