"""What a ClusterLoadAssignment of four endpoints costs to build and serialise: `python -m bench.building`.

Compares xds-protos, which the control plane uses, with envoy-data-plane, which checks its bytes in the tests (extra
`test`). Both make the same bytes; nine rounds in turn, medians.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable

from envoy.config.endpoint.v3 import endpoint_pb2

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its own use of pydantic
    from envoy_data_plane.envoy.config.core import v3 as core
    from envoy_data_plane.envoy.config.endpoint import v3 as endpoint

ADDRESSES = tuple(f"10.0.0.{number}" for number in range(1, 5))
ROUNDS = 9


def with_xds_protos() -> bytes:
    assignment = endpoint_pb2.ClusterLoadAssignment(cluster_name="m@1")
    locality = assignment.endpoints.add()
    for address in ADDRESSES:
        socket_address = locality.lb_endpoints.add().endpoint.address.socket_address
        socket_address.address, socket_address.port_value = address, 8500
    return assignment.SerializeToString(deterministic=True)


def with_envoy_data_plane() -> bytes:
    def lb_endpoint(address: str) -> endpoint.LbEndpoint:
        socket_address = core.SocketAddress(address=address, port_value=8500)
        return endpoint.LbEndpoint(endpoint=endpoint.Endpoint(address=core.Address(socket_address=socket_address)))

    locality = endpoint.LocalityLbEndpoints(lb_endpoints=[lb_endpoint(address) for address in ADDRESSES])
    return bytes(endpoint.ClusterLoadAssignment(cluster_name="m@1", endpoints=[locality]))


def microseconds(make: Callable[[], bytes], count: int) -> float:
    started = time.perf_counter()
    for _ in range(count):
        make()
    return (time.perf_counter() - started) / count * 1e6


def main() -> None:
    assert with_xds_protos() == with_envoy_data_plane(), "they must make the same bytes"
    rounds = [(microseconds(with_xds_protos, 500), microseconds(with_envoy_data_plane, 20)) for _ in range(ROUNDS)]
    ours, theirs = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = statistics.median(theirs / ours for ours, theirs in rounds)
    print(f"xds-protos {ours:.0f} µs, envoy-data-plane {theirs:,.0f} µs: {ratio:.0f} times as much")


if __name__ == "__main__":
    main()
