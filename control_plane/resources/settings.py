"""The data path's numbers, fleet-wide, each with its reason. Invariant: a DataPlaneSettings that exists is valid.

They reach Envoy inside resources, so a change of one changes every resource that it is in: a cluster's numbers make
every cluster warm up anew. Meant to be chosen once per fleet; what varies per model belongs into its policy.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Any

from registry.addresses import split_address

MIB = 1024 * 1024


def _setting(default: Any, help_text: str, metavar: str = "") -> Any:
    return field(default=default, metadata={"help": help_text, **({"metavar": metavar} if metavar else {})})


@dataclass(frozen=True, slots=True)
class DataPlaneSettings:
    """Where Envoy listens and how it treats requests, connections and failing instances."""

    listen_address: str = _setting("0.0.0.0", "IP address on which Envoy listens for clients", "IP")
    grpc_port: int = _setting(
        8500, "TCP port of the gRPC listener; TF Serving's own number, so clients change only the host"
    )
    rest_port: int = _setting(8501, "TCP port of the REST listener; 0: no REST listener")

    # Needed for several worker threads to share new connections evenly. Two Envoys on one machine then share a port
    # too, silently; a local stack switches it off to be told that the port is taken.
    reuse_port: bool = _setting(True, "let each of Envoy's workers accept on its own socket (SO_REUSEPORT)")

    # A cluster that no request asks for still costs every Envoy some 20 KiB (docs/benchmarks.md), which counts from
    # some thousands of models on. The price is that the first request for a model waits for its cluster, and that each
    # request for a model which isn't there waits for on_demand_timeout.
    on_demand_clusters: bool = _setting(
        False,
        "let each Envoy ask for a model's clusters when a request needs them; its bootstrap must be made with "
        "--on-demand-clusters too",
    )

    # A control plane that is up answers in a few milliseconds. Envoy asks once per name and then only waits, so this is
    # what every further request for an unknown model takes.
    on_demand_timeout: float = _setting(
        0.25, "seconds a request waits for clusters on demand before its model counts as unknown", "SECONDS"
    )

    # Two raw 4K images or a batch of 200 in float32 fit; the router buffers a body in memory before it can route it.
    max_request_bytes: int = _setting(
        128 * MIB, "largest request body that is routed; a larger one is RESOURCE_EXHAUSTED"
    )

    # max_request_bytes at 9 Mbit/s. Only sending the request counts, never the model's own time: that the client
    # bounds, by its deadline.
    request_timeout: float = _setting(120.0, "seconds a client may take to send a request in full", "SECONDS")

    # In a data centre a connection takes well under a millisecond; TCP repeats a lost SYN after one second, and by then
    # another instance is the better bet.
    connect_timeout: float = _setting(
        1.0, "seconds until an instance that doesn't accept a connection counts as failed", "SECONDS"
    )

    # A machine that vanishes sends no reset. TCP notices after this; HTTP/2 pings must not be used for it: gRPC servers
    # take more than two in five minutes without data for abuse ("Too many pings") and close the connection, and with
    # it every inference that takes longer. Not shorter, because a process so starved that it reads nothing of a large
    # request for this long counts as gone too.
    dead_peer_timeout: float = _setting(
        20.0, "seconds without any sign from an instance's machine until its connections are closed", "SECONDS"
    )

    # One instance's death costs one retry, two dying at once two; the third is for bad luck.
    num_retries: int = _setting(3, "how often a safe request is sent to another instance after a failure")

    # With two instances, the death of one makes half of all requests retries at once. More than that is not a dead
    # instance but a model in trouble, which retries would only load further.
    retry_budget_percent: float = _setting(
        50.0, "retries in flight per model, at most, in percent of its requests in flight", "PERCENT"
    )

    # Where a model has few requests in flight, all of them may be on the instance that dies.
    min_retry_concurrency: int = _setting(
        128, "retries in flight per model that are always allowed, whatever the budget"
    )

    # No instance of a model computes this many at once; beyond it a queue in Envoy's memory would grow without bound.
    max_requests: int = _setting(16384, "requests in flight per model, at most; more are UNAVAILABLE")

    # HTTP/1.1 has one request per connection, so REST needs as many connections as requests; this bounds the
    # descriptors that one model can use up. gRPC needs one connection per instance and worker.
    max_connections: int = _setting(4096, "connections to the instances of one model, at most")

    # Connections refused, reset or timed out: the instance died and its lease hasn't run out yet.
    ejection_failures: int = _setting(5, "connection failures in a row after which an instance is left out for a while")

    # Answers such as INTERNAL and UNAVAILABLE. Far more than connection failures, because one client's broken input
    # can cause them on every instance alike: with this many and not one success in between, it is the instance.
    ejection_errors: int = _setting(20, "server errors in a row after which an instance is left out for a while")

    # The registry knows within seconds whether an instance is there; ejection only bridges that time, and a restarted
    # instance must get its share again soon.
    ejection_time: float = _setting(
        5.0, "seconds for which an instance is left out, times the number of its ejections", "SECONDS"
    )

    # Never the whole model because of what one client sends. Envoy counts what drains among the instances; if all that
    # are usable are left out, they are used all the same (clusters.py).
    max_ejection_percent: int = _setting(50, "instances of a model that may be left out at once, in percent", "PERCENT")

    # gRPC clients queue beyond it. Bounds what one connection can make Envoy buffer.
    max_concurrent_streams: int = _setting(1024, "requests in flight per client connection, at most")

    # A window smaller than bandwidth x round trip halves the throughput of large tensors: 16 MiB fill 10 Gbit/s at
    # 13 ms. It is no memory that is reserved.
    stream_window_bytes: int = _setting(16 * MIB, "HTTP/2 flow-control window of one request or response")

    # Four large bodies at full speed on one connection.
    connection_window_bytes: int = _setting(64 * MIB, "HTTP/2 flow-control window of one connection")

    # What Envoy writes is for whoever reads its output or that file; the control planes read none of it.
    access_log: str = _setting(
        "",
        "file in which each Envoy logs every request as a line of JSON, /dev/stdout for its output; empty: no log",
        "PATH",
    )

    # Each of them is a line that a control plane reads: 1 % of many is many. A canary decides for its own model.
    observe_percent: float = _setting(
        0.0, "requests of each model whose time and gRPC code the control planes are told, in percent", "PERCENT"
    )

    # By name: a collector moves. Each Envoy is sent it as a cluster of its own.
    tracing_collector: str = _setting(
        "", "OpenTelemetry collector (OTLP over gRPC) to which each Envoy sends spans; empty: no tracing", "HOST:PORT"
    )
    # Envoy draws by itself, whatever a client's traceparent says of sampling, and hands its own decision on.
    tracing_percent: float = _setting(1.0, "requests that are traced, in percent", "PERCENT")

    @property
    def named(self) -> bool:
        """Whether somebody wants to read of each request which model and version it was for."""
        return bool(self.access_log or self.tracing_collector)

    @property
    def collector(self) -> tuple[str, int] | None:
        """Host and port of tracing_collector, if there is one. Raises ValueError."""
        if not self.tracing_collector:
            return None
        try:
            return split_address(self.tracing_collector)
        except ValueError as error:
            raise ValueError(f"tracing_collector: {error}; write HOST:PORT, such as otel-collector:4317") from None

    def __post_init__(self) -> None:
        """Raise ValueError, naming the field and the mend."""
        try:
            ipaddress.ip_address(self.listen_address)
        except ValueError:
            raise ValueError(
                f"listen_address: {self.listen_address!r} is no IP address; 0.0.0.0 is every interface"
            ) from None
        if self.access_log and not self.access_log.startswith("/"):
            raise ValueError(f"access_log: {self.access_log!r} is no absolute path; /dev/stdout is Envoy's own output")
        if self.collector and self.on_demand_clusters:
            raise ValueError(
                "tracing_collector: an Envoy with on_demand_clusters asks for models' clusters only, so it would never "
                "get the collector's; use one of the two"
            )
        for name, low, high in (
            ("tracing_percent", 0, 100),
            ("observe_percent", 0, 100),
            ("grpc_port", 1, 65535),
            ("rest_port", 0, 65535),
            ("on_demand_timeout", 0.001, 60),
            ("max_request_bytes", 1, 2**31 - 1),
            ("request_timeout", 0.001, 86400),
            ("connect_timeout", 0.001, 3600),
            ("dead_peer_timeout", 3, 3600),
            ("num_retries", 0, 100),
            ("retry_budget_percent", 0, 100),
            ("min_retry_concurrency", 0, 2**31 - 1),
            ("max_requests", 1, 2**31 - 1),
            ("max_connections", 1, 2**31 - 1),
            ("ejection_failures", 1, 2**31 - 1),
            ("ejection_errors", 1, 2**31 - 1),
            ("ejection_time", 0.001, 86400),
            ("max_ejection_percent", 0, 100),
            ("max_concurrent_streams", 1, 2**31 - 1),
            ("stream_window_bytes", 65535, 2**31 - 1),
            ("connection_window_bytes", 65535, 2**31 - 1),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}: {getattr(self, name)} is not between {low} and {high}")
        if self.grpc_port == self.rest_port:
            raise ValueError(f"rest_port: {self.rest_port} is grpc_port too; give each its own port")
