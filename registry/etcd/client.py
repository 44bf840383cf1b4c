"""The client as others use it: all of etcd's services that we call over one set of channels."""

from __future__ import annotations

from types import TracebackType

from registry.etcd.config import EtcdConfig
from registry.etcd.connection import Connection
from registry.etcd.kv import KeyValueCalls
from registry.etcd.lease import LeaseCalls
from registry.etcd.watch import WatchCalls


class EtcdClient(KeyValueCalls, LeaseCalls, WatchCalls):
    """A client of one etcd cluster: an async context manager, which dials nothing before the first call."""

    def __init__(self, config: EtcdConfig | None = None) -> None:
        self.config = config or EtcdConfig()
        super().__init__(Connection(self.config))

    async def __aenter__(self) -> EtcdClient:
        """Make the channels. Raises TlsFilesUnreadable."""
        self._connection.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connection.close()
