"""What a client says of itself in its first request. Pure.

Invariant: what is kept of it for a stream's life is small: an Envoy lists every extension that it has, some 50 KB.
"""

from __future__ import annotations

from typing import Any

from envoy.config.core.v3 import base_pb2


def kept(node: Any) -> base_pb2.Node:
    """The node without what nobody asks about again."""
    copy = base_pb2.Node()
    copy.CopyFrom(node)
    for name in ("extensions", "client_features", "listening_addresses"):
        copy.ClearField(name)
    # What is cleared stays in the message's memory; a message that is parsed anew never had it.
    return base_pb2.Node.FromString(copy.SerializeToString())


def user_agent(node: base_pb2.Node) -> str:
    """The kind of client and its version, such as `envoy 1.40.0`; empty if it doesn't say."""
    number = node.user_agent_build_version.version
    version = node.user_agent_version
    if not version and node.HasField("user_agent_build_version"):
        version = f"{number.major_number}.{number.minor_number}.{number.patch}"
    return f"{node.user_agent_name} {version}".strip()
