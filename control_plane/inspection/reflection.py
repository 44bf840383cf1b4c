"""gRPC server reflection: what this port serves, with every message's definition, for grpcurl and its like.

Invariant: each service that is listed is described too, which takes that its generated module has been imported.
"""

from __future__ import annotations

import grpc
from envoy.service.cluster.v3 import cds_pb2
from envoy.service.discovery.v3 import ads_pb2
from envoy.service.endpoint.v3 import eds_pb2
from envoy.service.extension.v3 import config_discovery_pb2
from envoy.service.listener.v3 import lds_pb2
from envoy.service.load_stats.v3 import lrs_pb2
from envoy.service.route.v3 import rds_pb2
from envoy.service.status.v3 import csds_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

_FILES = (
    *(ads_pb2, lds_pb2, rds_pb2, cds_pb2, eds_pb2, config_discovery_pb2),
    *(lrs_pb2, csds_pb2, health_pb2, reflection_pb2),
)
DESCRIBED = frozenset(service.full_name for file in _FILES for service in file.DESCRIPTOR.services_by_name.values())
"""The services that can be described."""


def enable_reflection(server: grpc.aio.Server, services: frozenset[str]) -> None:
    """Let the server list and describe these. Raises ValueError for one that it can't describe."""
    if unknown := services - DESCRIBED:
        raise ValueError(f"no definition of {', '.join(sorted(unknown))}")
    reflection.enable_server_reflection(services, server)
