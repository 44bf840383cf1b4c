from __future__ import annotations

import json

import pytest

from control_plane.grpc_bootstrap import render_grpc_bootstrap


@pytest.mark.parametrize(
    ("addresses", "targets"),
    [
        (["10.0.0.1:18000"], ["ipv4:10.0.0.1:18000"]),
        (["10.0.0.1:18000", "10.0.0.2:18001"], ["ipv4:10.0.0.1:18000,10.0.0.2:18001"]),
        (["[fd00::1]:18000", "[fd00::2]:18000"], ["ipv6:[fd00::1]:18000,[fd00::2]:18000"]),
        (["planes.example:18000"], ["dns:///planes.example:18000"]),
        (["plane-0:18000", "10.0.0.2:18000"], ["dns:///plane-0:18000", "dns:///10.0.0.2:18000"]),
    ],
)
def test_several_addresses_are_one_server_where_grpc_can_say_so(addresses: list[str], targets: list[str]) -> None:
    document = json.loads(render_grpc_bootstrap(addresses, node_id="batch"))
    assert [server["server_uri"] for server in document["xds_servers"]] == targets
    assert document["node"]["id"] == "batch"
    assert all("ignore_resource_deletion" in server["server_features"] for server in document["xds_servers"])


@pytest.mark.parametrize("addresses", [[], ["nonsense"]])
def test_what_is_no_address_is_refused(addresses: list[str]) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        render_grpc_bootstrap(addresses)
