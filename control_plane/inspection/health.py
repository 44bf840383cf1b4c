"""gRPC health of each service on the xDS port. Invariant: what serves Envoys is SERVING once the registry was read;
what only tells of this replica is so from the beginning, for that is when one wants to know."""

from __future__ import annotations

from collections.abc import Iterable

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from control_plane.inspection import csds
from control_plane.xds import load_reports
from control_plane.xds.services import METHODS

_SERVING, _NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING

FOR_ENVOYS = frozenset({*(method.service for method in METHODS), load_reports.SERVICE})
FOR_OPERATORS = frozenset({csds.SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME})


class Health:
    """Serves gRPC's health service."""

    def __init__(self) -> None:
        self._servicer = HealthServicer()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve it there."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def begin(self) -> None:
        """The registry has not been read yet."""
        await self._say(("", *FOR_ENVOYS), _NOT_SERVING)
        await self._say(FOR_OPERATORS, _SERVING)

    async def ready(self) -> None:
        """Envoys can be served."""
        # The empty name is the server as a whole.
        await self._say(("", *FOR_ENVOYS), _SERVING)

    async def end(self) -> None:
        """This replica is shutting down."""
        await self._servicer.enter_graceful_shutdown()

    async def _say(self, services: Iterable[str], status: int) -> None:
        for service in services:
            await self._servicer.set(service, status)
