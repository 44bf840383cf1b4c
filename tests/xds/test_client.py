"""What is kept of a client's first request."""

from __future__ import annotations

import pytest
from envoy.config.core.v3 import base_pb2

from control_plane.xds.client import kept, user_agent


def test_what_makes_a_node_large_is_not_kept() -> None:
    node = base_pb2.Node(id="envoy-1", cluster="edge", user_agent_name="envoy", client_features=["x"])
    node.extensions.add(name="envoy.filters.http.lua")
    node.listening_addresses.add()
    node.metadata["rack"] = "a"
    assert kept(node) == base_pb2.Node(id="envoy-1", cluster="edge", user_agent_name="envoy", metadata=node.metadata)
    assert node.extensions, "the request itself is not touched"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ""),
        ({"user_agent_name": "envoy"}, "envoy"),
        (
            {"user_agent_name": "gRPC Go", "user_agent_version": "v46"},
            "gRPC Go v46",
        ),
        (
            {
                "user_agent_name": "envoy",
                "user_agent_build_version": {"version": {"major_number": 1, "minor_number": 40, "patch": 0}},
            },
            "envoy 1.40.0",
        ),
    ],
)
def test_the_kind_of_client(fields: dict[str, object], expected: str) -> None:
    assert user_agent(base_pb2.Node(**fields)) == expected
