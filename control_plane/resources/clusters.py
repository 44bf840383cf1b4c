"""Cluster definitions. Invariant: a cluster's bytes depend on its name, its protocol, the settings and what the model's
policy says of its clusters, never on anything that varies by itself in a model's life; all that varies is in its
ClusterLoadAssignment. A changed definition makes Envoy build the cluster anew, so only an operator's word changes it.

So each protocol has one serialised template per distinct tuning, and a cluster is the template with its name spliced
in: 40,000 clusters cost what 40,000 string joins cost. The result is byte for byte what protobuf serialises, which a
test holds it to.
"""

from __future__ import annotations

from enum import Enum
from functools import lru_cache

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import config_source_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from google.protobuf.duration_pb2 import Duration

from control_plane.model import FLEETS_OWN, Tuning
from control_plane.resources.resource import CLUSTER, Resource, pack_bytes
from control_plane.resources.settings import DataPlaneSettings
from control_plane.resources.wire import string_field
from registry.policy.model import Balancing, CircuitBreaking, OutlierDetection

HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_IPPROTO_TCP, _TCP_USER_TIMEOUT = 6, 18


class Protocol(Enum):
    """What an instance is spoken to in."""

    GRPC = "grpc"
    REST = "rest"


def seconds(value: float) -> Duration:
    """A protobuf duration."""
    return Duration(seconds=int(value), nanos=round(value % 1 * 1e9))


def cluster_message(
    name: str, protocol: Protocol, settings: DataPlaneSettings, tuning: Tuning = FLEETS_OWN.tuning
) -> cluster_pb2.Cluster:
    """The definition of one cluster, as a message."""
    cluster = cluster_pb2.Cluster(
        name=name, type=cluster_pb2.Cluster.EDS, connect_timeout=seconds(settings.connect_timeout)
    )
    eds = cluster.eds_cluster_config.eds_config
    eds.ads.SetInParent()
    eds.resource_api_version = config_source_pb2.V3
    # 0: a cluster without its endpoints stays warming however long they take, so neither a starting Envoy nor a new
    # model is served before they are there. The control plane answers for every name, so it can't take for ever.
    eds.initial_fetch_timeout.SetInParent()
    _balance(cluster, tuning.balancing)
    _limit(cluster, settings, tuning.circuit_breaking or CircuitBreaking())
    _eject(cluster, settings, tuning.outlier_detection or OutlierDetection())
    _notice_dead_peers(cluster, settings)
    cluster.typed_extension_protocol_options[HTTP_OPTIONS].Pack(_http_options(protocol, settings), deterministic=True)
    return cluster


def _balance(cluster: cluster_pb2.Cluster, balancing: Balancing | None) -> None:
    match balancing:
        case Balancing.ROUND_ROBIN:
            cluster.lb_policy = cluster_pb2.Cluster.ROUND_ROBIN
        case Balancing.RANDOM:
            cluster.lb_policy = cluster_pb2.Cluster.RANDOM
        case _:
            # Inference times vary by orders of magnitude, so the instance with fewer requests in flight is the better
            # one; of two picked at random, because the very best of all would get every request between two updates of
            # the counts.
            cluster.lb_policy = cluster_pb2.Cluster.LEAST_REQUEST
            cluster.least_request_lb_config.choice_count.value = 2
    # If outlier detection has ejected all that may be asked, ask them all the same: it is to move requests to a better
    # instance, and there is none. To Envoy it is panic, when fewer than this share is healthy. It would ask what drains
    # too, were it not for the assignment's weights and drop_overloads (endpoints.py).
    cluster.common_lb_config.healthy_panic_threshold.value = 1
    # Without it Envoy may hold a change of health back for a second that it has acknowledged (cluster.proto), and a
    # drain relies on the acknowledgement. (Of EDS updates Envoy 1.40 was not seen to hold any back.)
    cluster.common_lb_config.update_merge_window.SetInParent()


def _limit(cluster: cluster_pb2.Cluster, settings: DataPlaneSettings, wanted: CircuitBreaking) -> None:
    thresholds = cluster.circuit_breakers.thresholds.add()
    thresholds.max_connections.value = _or(wanted.max_connections, settings.max_connections)
    max_requests = _or(wanted.max_requests, settings.max_requests)
    # Requests that wait for a connection: all of them do while the first one is being made.
    thresholds.max_pending_requests.value = max_requests
    thresholds.max_requests.value = max_requests
    thresholds.retry_budget.budget_percent.value = settings.retry_budget_percent
    thresholds.retry_budget.min_retry_concurrency.value = settings.min_retry_concurrency


def _eject(cluster: cluster_pb2.Cluster, settings: DataPlaneSettings, wanted: OutlierDetection) -> None:
    outliers = cluster.outlier_detection
    ejection_time = settings.ejection_time if wanted.ejection_time is None else wanted.ejection_time
    # Ejections are decided per failure; the interval only says how soon an ejected instance is let in again.
    outliers.interval.CopyFrom(seconds(1))
    outliers.base_ejection_time.CopyFrom(seconds(ejection_time))
    outliers.max_ejection_time.CopyFrom(seconds(ejection_time * 6))
    outliers.max_ejection_percent.value = _or(wanted.max_ejection_percent, settings.max_ejection_percent)
    # Connection failures and the server's own answers say different things, and are counted apart.
    outliers.split_external_local_origin_errors = True
    outliers.consecutive_local_origin_failure.value = settings.ejection_failures
    outliers.consecutive_5xx.value = _or(wanted.consecutive_errors, settings.ejection_errors)


def _or(wanted: int | None, otherwise: int) -> int:
    return otherwise if wanted is None else wanted


def _notice_dead_peers(cluster: cluster_pb2.Cluster, settings: DataPlaneSettings) -> None:
    timeout = settings.dead_peer_timeout
    keepalive = cluster.upstream_connection_options.tcp_keepalive
    keepalive.keepalive_time.value = max(1, int(timeout / 2))
    keepalive.keepalive_interval.value = max(1, int(timeout / 6))
    keepalive.keepalive_probes.value = 3
    # Keepalive probes an idle connection only; this covers one with unacknowledged data.
    option = cluster.upstream_bind_config.socket_options.add()
    option.description = "TCP_USER_TIMEOUT"
    option.level, option.name, option.int_value = _IPPROTO_TCP, _TCP_USER_TIMEOUT, int(timeout * 1000)


def _http_options(protocol: Protocol, settings: DataPlaneSettings) -> http_protocol_options_pb2.HttpProtocolOptions:
    options = http_protocol_options_pb2.HttpProtocolOptions()
    if protocol is Protocol.GRPC:
        http2 = options.explicit_http_config.http2_protocol_options
        http2.initial_stream_window_size.value = settings.stream_window_bytes
        http2.initial_connection_window_size.value = settings.connection_window_bytes
    else:
        options.explicit_http_config.http_protocol_options.SetInParent()
        # TF Serving closes an idle REST connection after 30 s (--rest_api_timeout_in_ms); letting go first means that
        # no request meets the closing.
        options.common_http_protocol_options.idle_timeout.CopyFrom(seconds(20))
    return options


@lru_cache(maxsize=1024)
def cluster_template(protocol: Protocol, settings: DataPlaneSettings, tuning: Tuning = FLEETS_OWN.tuning) -> bytes:
    """A serialised cluster without its name."""
    return bytes(cluster_message("", protocol, settings, tuning).SerializeToString(deterministic=True))


def cluster(name: str, template: bytes, model: str) -> Resource:
    """One cluster as a resource, from `cluster_template`; its EDS resource has the same name."""
    # Field 1 of a Cluster is its name, and protobuf writes fields in order of their numbers.
    return pack_bytes(CLUSTER, name, string_field(1, name) + template, model=model)
