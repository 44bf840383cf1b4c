"""What a gRPC client without a proxy starts with: the JSON that GRPC_XDS_BOOTSTRAP names (gRFC A27).

Invariant: whichever control plane goes, a client that was given several finds another.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Sequence

from registry.addresses import join_address, split_address


def render_grpc_bootstrap(
    control_planes: Sequence[str] = ("127.0.0.1:18000",), *, node_id: str = "modelplane-grpc"
) -> str:
    """The file's text. `control_planes`: each one's HOST:PORT. `node_id`: what a control plane calls these clients.

    Raises ValueError for an address that is none, or no address.
    """
    if not control_planes:
        raise ValueError("no control plane's address was given; give at least one HOST:PORT")
    servers = [
        {
            "server_uri": target,
            "channel_creds": [{"type": "insecure"}],
            # A cluster that goes is in use until the client has changed over to what is there instead, which it
            # acknowledges before (gRFC A53).
            "server_features": ["xds_v3", "ignore_resource_deletion"],
        }
        for target in _targets([split_address(address) for address in control_planes])
    ]
    node = {"id": node_id, "cluster": "modelplane"}
    return json.dumps({"xds_servers": servers, "node": node}, indent=2, ensure_ascii=False) + "\n"


def _targets(addresses: Sequence[tuple[str, int]]) -> list[str]:
    """gRPC's names of where the control planes are: a single one if the addresses can be put into one.

    Of several servers a client uses the next one only while it lacks something and the ones before don't answer (gRFC
    A71): one that has all that it asked for would hear of no change until the first is back. Several addresses of one
    server are tried in turn whenever the connection is lost.
    """
    families = [_family(host) for host, _ in addresses]
    joined = [join_address(host, port) for host, port in addresses]
    if families[0] and len(set(families)) == 1:
        return [f"{families[0]}:{','.join(joined)}"]
    return [f"dns:///{where}" for where in joined]


def _family(host: str) -> str:
    try:
        return f"ipv{ipaddress.ip_address(host).version}"
    except ValueError:
        return ""
