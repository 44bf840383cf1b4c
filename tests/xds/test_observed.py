"""What Envoy's access log entries count as."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.data.accesslog.v3 import accesslog_pb2
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from control_plane.resources.names import grpc_cluster, read_cluster, rest_cluster
from control_plane.xds.observed import Observed, read_timeout
from registry.plane_traffic import VersionTotals, latency_bucket

GONE = {"downstreamRemoteReset": True}
PREDICT = "/tensorflow.serving.PredictionService/Predict"


def entry(
    cluster: str = "m@3", *, flags: Any = None, asked: bool = True, path: str = PREDICT, **response: Any
) -> accesslog_pb2.HTTPAccessLogEntry:
    common = {
        "upstreamCluster": cluster,
        "accessLogType": "DownstreamEnd",
        "timeToLastRxByte": "0.200s",
        "timeToLastUpstreamRxByte": "0.250s",
        "duration": "0.300s",
        "responseFlags": flags or {},
    }
    if asked:
        common["upstreamRemoteAddress"] = {"socketAddress": {"address": "127.0.0.1", "portValue": 1}}
    headers = response.pop("request", {})
    document = {
        "commonProperties": common,
        "request": {"path": path, "requestHeaders": headers},
        "response": response,
    }
    return json_format.ParseDict(document, accesslog_pb2.HTTPAccessLogEntry())


def status(code: int) -> dict[str, Any]:
    return {"responseTrailers": {"grpc-status": str(code)}}


@pytest.mark.parametrize(
    ("listener", "one", "failed"),
    [
        ("grpc", entry(**status(0)), False),
        ("grpc", entry(**status(13)), True),
        ("grpc", entry(**status(3)), True),
        ("grpc", entry(**status(1)), False),
        ("grpc", entry(responseHeaders={"grpc-status": "14"}), True),
        ("grpc", entry(), True),
        ("grpc", entry(flags=GONE), False),
        ("grpc", entry(flags=GONE, request={"grpc-timeout": "310m"}), True),
        ("grpc", entry(flags=GONE, request={"grpc-timeout": "1S"}), False),
        ("grpc", entry(flags={"noHealthyUpstream": True}, asked=False, responseHeaders={"grpc-status": "14"}), True),
        ("rest", entry("@rest/m@3", responseCode=200), False),
        ("rest", entry("@rest/m@3", responseCode=400), True),
        ("rest", entry("@rest/m@3", responseCode=503), True),
        ("rest", entry("@rest/m@3", flags=GONE), False),
    ],
)
def test_every_answer_that_is_not_ok_is_an_error(
    listener: str, one: accesslog_pb2.HTTPAccessLogEntry, failed: bool
) -> None:
    observed = Observed()
    observed.count(listener, one)
    [(servable, totals)] = observed.totals().items()
    assert servable == ("m", 3)
    assert (totals.observed, totals.observed_errors) == (1, int(failed))


def test_the_time_is_the_server_s() -> None:
    observed = Observed()
    observed.count("grpc", entry(**status(0)))
    observed.count("grpc", entry(asked=False, **status(14)))
    given_up = entry(flags=GONE)
    given_up.common_properties.ClearField("time_to_last_upstream_rx_byte")
    observed.count("grpc", given_up)
    latency = [0] * (latency_bucket(0.1) + 1)
    latency[latency_bucket(0.05)] += 1
    latency[latency_bucket(0.1)] += 1
    assert observed.totals() == {("m", 3): VersionTotals(observed=3, observed_errors=1, latency=tuple(latency))}


def test_what_runs_no_model_is_left_out() -> None:
    observed = Observed()
    observed.count("grpc", entry("", **status(5)))
    observed.count("grpc", entry("@xds", **status(0)))
    observed.count("grpc", entry(path="/tensorflow.serving.PredictionService/GetModelMetadata", **status(0)))
    observed.count("rest", entry("@rest/m@3", path="/v1/models/m/versions/3/metadata?x=1", responseCode=200))
    begun = entry(**status(0))
    begun.common_properties.access_log_type = accesslog_pb2.DownstreamStart
    observed.count("grpc", begun)
    assert observed.totals() == {}


@given(st.text(min_size=1), st.none() | st.integers(0, 2**63 - 1))
def test_every_model_s_cluster_is_read_back(model: str, version: int | None) -> None:
    assert read_cluster(grpc_cluster(model, version)) == (model, version)
    assert read_cluster(rest_cluster(model, version)) == (model, version)


@pytest.mark.parametrize(
    ("text", "seconds"), [("100m", 0.1), ("2S", 2.0), ("1H", 3600.0), ("", None), ("m", None), ("1x", None)]
)
def test_a_deadline_is_read_as_grpc_spells_it(text: str, seconds: float | None) -> None:
    assert read_timeout({"grpc-timeout": text} if text else {}) == seconds
