"""The listeners' access logs: Envoy tells the control planes of the outcome of requests that the router has marked,
and, where the settings name a file, writes a line of JSON for every request.

Invariant: a request without the mark costs one look at its headers. The mark is the router's: what a client sends under
that name is dropped before anything else looks at the request (listeners.py).

A control plane that hangs or is away costs Envoy at most BUFFER_BYTES a worker and listener, and what is in gRPC's send
buffer until the connection's keepalive ends it; what is more is dropped, and counted as
`access_logs.grpc_access_log.logs_dropped` (grpc_access_logger.h, canLogMore). No request ever waits for its log.
"""

from __future__ import annotations

from envoy.config.accesslog.v3 import accesslog_pb2
from envoy.config.core.v3 import config_source_pb2
from envoy.extensions.access_loggers.file.v3 import file_pb2
from envoy.extensions.access_loggers.grpc.v3 import als_pb2

from control_plane.resources.clusters import seconds
from control_plane.resources.names import (
    CONTROL_PLANES,
    LOGGED_MODEL_HEADER,
    LOGGED_VERSION_HEADER,
    OBSERVE_HEADER,
)

BUFFER_BYTES = 64 * 1024
"""Some 150 entries. More than these at once are sent before the next flush."""
FLUSH_SECONDS = 0.5
"""A canary looks every second."""


def observed(listener: str) -> accesslog_pb2.AccessLog:
    """The log of one listener; its name is the listener's."""
    config = als_pb2.HttpGrpcAccessLogConfig()
    common = config.common_config
    common.log_name = listener
    common.transport_api_version = config_source_pb2.V3
    common.grpc_service.envoy_grpc.cluster_name = CONTROL_PLANES
    common.buffer_flush_interval.CopyFrom(seconds(FLUSH_SECONDS))
    common.buffer_size_bytes.value = BUFFER_BYTES
    config.additional_request_headers_to_log.append("grpc-timeout")
    # An answer without a message has its status in the headers.
    config.additional_response_headers_to_log.append("grpc-status")
    config.additional_response_trailers_to_log.append("grpc-status")
    log = accesslog_pb2.AccessLog(name="envoy.access_loggers.http_grpc")
    header = log.filter.header_filter.header
    header.name, header.present_match = OBSERVE_HEADER, True
    log.typed_config.Pack(config, deterministic=True)
    return log


_FIELDS = {
    "time": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
    "model": f"%REQ({LOGGED_MODEL_HEADER})%",
    "version": f"%REQ({LOGGED_VERSION_HEADER})%",
    # An endpoint's host name is its instance's (endpoints.py).
    "instance": "%UPSTREAM_HOST_NAME%",
    "address": "%UPSTREAM_REMOTE_ADDRESS%",
    "path": "%REQ(:path)%",
    "code": "%RESPONSE_CODE%",
    "grpc_status": "%GRPC_STATUS%",
    "flags": "%RESPONSE_FLAGS%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    "milliseconds": "%DURATION%",
    "server_milliseconds": "%RESPONSE_DURATION%",
    "bytes_in": "%BYTES_RECEIVED%",
    "bytes_out": "%BYTES_SENT%",
    "client": "%DOWNSTREAM_REMOTE_ADDRESS%",
    "user_agent": "%REQ(user-agent)%",
    "trace": "%TRACE_ID%",
}


def logged(listener: str, path: str) -> accesslog_pb2.AccessLog:
    """A line of JSON per request of one listener, in a file on Envoy's machine."""
    config = file_pb2.FileAccessLog(path=path)
    config.log_format.json_format.update({"listener": listener, **_FIELDS})
    log = accesslog_pb2.AccessLog(name="envoy.access_loggers.file")
    log.typed_config.Pack(config, deterministic=True)
    return log
