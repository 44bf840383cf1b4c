"""One Envoy's load reports on their way to the control plane that configures it.

Envoy takes turns among the control planes for each of its streams, and waits 5 s before it tries the next one for load
reports (Envoy 1.40, load_stats_reporter.h, RETRY_DELAY_MS). So a stream that came to the wrong replica is not ended:
what the right one asks for goes to Envoy, what Envoy reports goes there, and nothing of it is judged here.

Invariant: of the reports that may be evidence that nothing is in flight, only those are passed on that Envoy made after
it was asked for them. What a report leaves out counts as idle, and one that was made for an asking before, by whichever
replica, may leave out what matters. So one of `MARKS`, clusters that every Envoy has and that nobody asks for by name,
is added to every list, another one than to the list before; a report that names it, and nothing that is not on the
list, was made for this list.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import grpc
from envoy.config.core.v3 import base_pb2
from envoy.service.load_stats.v3 import lrs_pb2

log = logging.getLogger(__name__)

METHOD = "/envoy.service.load_stats.v3.LoadReportingService/StreamLoadStats"
RELAYED = "x-modelplane-relayed"
"""Metadata of a stream that a control plane passes on; it is passed on once only."""
MARKS = "@xds", "@shadow"
"""In every bootstrap (envoy/bootstrap.yaml). One from before that has not both is not passed on."""

_PATIENCE = 2.0
"""Seconds in which the other control plane has to answer, and Envoy to do as it is asked."""
_MOST_WAITING = 1000
_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    # As Envoy does it: a control plane that hangs closes no connection.
    ("grpc.keepalive_time_ms", 2_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
)


class Asking:
    """What the other control plane asks Envoy for, and whether Envoy does so. Pure; `now` in monotonic seconds."""

    def __init__(self) -> None:
        self.wanted: lrs_pb2.LoadStatsResponse | None = None
        self.deaf = False
        """Envoy does not do as it is asked: its reports can't be passed on."""
        self._marks = itertools.cycle(MARKS)
        self._mark = ""
        self._names: frozenset[str] = frozenset()
        self._obeyed = True
        self._since = 0.0

    def told(self, response: lrs_pb2.LoadStatsResponse, now: float) -> None:
        """It asks for this from now on."""
        # While nothing is asked for by name, no report is evidence of a drain.
        self._obeyed = not response.clusters
        if response.clusters:
            self._mark = next(self._marks)
            response.clusters.append(self._mark)
        self._names = frozenset(response.clusters)
        self.wanted, self._since = response, now

    def answers(self, report: lrs_pb2.LoadStatsRequest, now: float) -> bool:
        """Whether a report was made for what is wanted now. Reports come in the order in which they were made."""
        if not self._obeyed:
            named = {cluster.cluster_name for cluster in report.cluster_stats}
            self._obeyed = self._mark in named and named <= self._names
            self.deaf = not self._obeyed and now > self._since + _PATIENCE
        return self.wanted is not None and self._obeyed


class LoadRelay:
    """To the control plane at `address`, on behalf of `node`. `on_asked` is called when it asks for something else."""

    def __init__(
        self,
        node: base_pb2.Node,
        address: str,
        *,
        on_asked: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self.address = address
        self.asking = Asking()
        self._node, self._on_asked, self._clock = node, on_asked, clock
        self._reports: deque[lrs_pb2.LoadStatsRequest] = deque()
        self._more = asyncio.Event()

    async def run(self) -> None:
        """Until the other control plane ends it, hangs or can't be reached; or until cancelled."""
        async with grpc.aio.insecure_channel(self.address, options=_OPTIONS) as channel:
            call: Any = channel.stream_stream(
                METHOD,
                request_serializer=lrs_pb2.LoadStatsRequest.SerializeToString,
                response_deserializer=lrs_pb2.LoadStatsResponse.FromString,
            )(metadata=((RELAYED, "1"),))
            writing = asyncio.create_task(self._write(call))
            try:
                async with asyncio.timeout(_PATIENCE):
                    response = await call.read()
                while response is not grpc.aio.EOF:
                    self.asking.told(response, self._clock())
                    self._on_asked()
                    response = await call.read()
            except (grpc.aio.AioRpcError, TimeoutError) as error:
                log.debug("load reports of %s no longer go to %s: %s", self._node.id, self.address, error)
            finally:
                writing.cancel()
                await asyncio.wait({writing})
                call.cancel()

    def passed_on(self, report: lrs_pb2.LoadStatsRequest) -> bool:
        """Pass a report on, unless it may have been made before it was asked for. Whether it was."""
        if not self.asking.answers(report, self._clock()) or len(self._reports) >= _MOST_WAITING:
            return False
        self._reports.append(report)
        self._more.set()
        return True

    async def _write(self, call: Any) -> None:
        try:
            # What Envoy had counted before it came here, this replica has counted.
            await call.write(lrs_pb2.LoadStatsRequest(node=self._node))
            while True:
                await self._more.wait()
                self._more.clear()
                while self._reports:
                    await call.write(self._reports.popleft())
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # The reader is told why.
            return
