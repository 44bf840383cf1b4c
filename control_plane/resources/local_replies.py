"""What Envoy itself answers, in TF Serving's words.

Invariant: whatever Envoy answers instead of an instance carries the code that TF Serving would give and a message that
names the model: gRPC by grpc-status and grpc-message, REST by the HTTP status and `{"error": …}`. The texts for an
unknown model come from the model router, which knows what the client asked for (envoy/router_common.lua).
"""

from __future__ import annotations

from typing import TypeAlias

from envoy.config.accesslog.v3 import accesslog_pb2
from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2

from control_plane.resources.names import CLUSTER_HEADER
from control_plane.resources.settings import DataPlaneSettings

_LocalReplyConfig: TypeAlias = http_connection_manager_pb2.LocalReplyConfig
_Filter: TypeAlias = accesslog_pb2.AccessLogFilter

INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND, RESOURCE_EXHAUSTED = 3, 4, 5, 8
UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 12, 13, 14

_NOT_FOUND_TEXT = "%REQ(X-MODELPLANE-NOT-FOUND)%"
_MODEL = "model %REQ(X-MODELPLANE-MODEL?X-MODELPLANE-CLUSTER)%"

# Envoy's response flags. UDO: all that is listed drains (endpoints.py).
_NO_CLUSTER, _OVERFLOW = "NC", "UO"
_NOBODY_FLAGS = ("UH", "UDO")
_CONNECTION_FLAGS = ("UF", "UC", "UR", "LR", "URX")
_TIMEOUT_FLAGS = ("UT", "DT", "SI", "UMSDR")


def _flags(*flags: str) -> _Filter:
    return _Filter(response_flag_filter=accesslog_pb2.ResponseFlagFilter(flags=flags))


def _header(name: str, *, present: bool = True) -> _Filter:
    matcher = route_components_pb2.HeaderMatcher(name=name, present_match=True, invert_match=not present)
    return _Filter(header_filter=accesslog_pb2.HeaderFilter(header=matcher))


def _status(code: int) -> _Filter:
    filter_ = _Filter()
    comparison = filter_.status_code_filter.comparison
    comparison.op = accesslog_pb2.ComparisonFilter.EQ
    comparison.value.default_value = code
    comparison.value.runtime_key = "modelplane.local_reply.status"  # required by the schema; nothing sets it
    return filter_


def _all(*filters: _Filter) -> _Filter:
    return _Filter(and_filter=accesslog_pb2.AndFilter(filters=filters))


def _any(*filters: _Filter) -> _Filter:
    return _Filter(or_filter=accesslog_pb2.OrFilter(filters=filters))


def _limit_of_ours() -> _Filter:
    # What a model's own policy does not allow, the model router has answered in full.
    return _all(_status(413), _header("x-modelplane-too-large", present=False))


def _cases(settings: DataPlaneSettings) -> tuple[tuple[_Filter, int, int, str], ...]:
    """Filter, gRPC status, HTTP status and message of every case; the first that matches holds."""
    unknown = _flags(_NO_CLUSTER)
    return (
        (
            _all(unknown, _header(CLUSTER_HEADER, present=False)),
            INTERNAL,
            500,
            "The model router failed on this request",
        ),
        (_all(unknown, _header("x-modelplane-label")), INVALID_ARGUMENT, 400, _NOT_FOUND_TEXT),
        (_all(unknown, _header("x-modelplane-not-found")), NOT_FOUND, 404, _NOT_FOUND_TEXT),
        # The router spares the plain case a header: there the cluster's name is the model's.
        (unknown, NOT_FOUND, 404, "Servable not found for request: Latest(%REQ(X-MODELPLANE-CLUSTER)%)"),
        (_flags(*_NOBODY_FLAGS), UNAVAILABLE, 503, f"No instance is ready for {_MODEL}"),
        (_flags(_OVERFLOW), UNAVAILABLE, 503, f"Too many requests in flight for {_MODEL}"),
        (_limit_of_ours(), RESOURCE_EXHAUSTED, 413, f"Request is larger than {settings.max_request_bytes} bytes"),
        (_status(408), DEADLINE_EXCEEDED, 408, f"Request did not arrive within {settings.request_timeout:g} s"),
        (_any(_flags(*_TIMEOUT_FLAGS), _status(504)), DEADLINE_EXCEEDED, 504, f"Deadline exceeded by {_MODEL}"),
        (_flags(*_CONNECTION_FLAGS), UNAVAILABLE, 503, f"No instance answered for {_MODEL}: %LOCAL_REPLY_BODY%"),
    )


def grpc(settings: DataPlaneSettings) -> _LocalReplyConfig:
    """For the gRPC listener. Envoy puts the text into grpc-message, percent-encoded."""
    config = _LocalReplyConfig()
    for filter_, code, _, message in _cases(settings):
        mapper = config.mappers.add(filter=filter_)
        mapper.body_format_override.text_format_source.inline_string = message
        mapper.headers_to_add.add(
            header=base_pb2.HeaderValue(key="grpc-status", value=str(code)),
            append_action=base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
        )
    return config


def rest(settings: DataPlaneSettings) -> _LocalReplyConfig:
    """For the REST listener: JSON, as TF Serving has it."""
    config = _LocalReplyConfig()
    for filter_, _, status, message in _cases(settings):
        mapper = config.mappers.add(filter=filter_)
        mapper.status_code.value = status
        mapper.body_format_override.json_format.update({"error": message})
    config.body_format.json_format.update({"error": "%LOCAL_REPLY_BODY%"})
    return config
