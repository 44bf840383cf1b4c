"""`modelplane grpc-bootstrap`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from control_plane.grpc_bootstrap import render_grpc_bootstrap
from modelplane.commandline import CommandLine
from modelplane.errors import OptionError


@dataclass(frozen=True, slots=True)
class GrpcBootstrapConfig:
    """What differs from one client's machine to the next."""

    xds: tuple[str, ...] = field(
        default=("127.0.0.1:18000",),
        metadata={
            "help": "the control planes, tried in this order; several as IP addresses, or one name that stands for all",
            "metavar": "HOST:PORT",
        },
    )
    node_id: str = field(
        default="modelplane-grpc",
        metadata={"help": "the name of these clients, by which a control plane speaks of them", "metavar": "NAME"},
    )


def command_line() -> CommandLine:
    """The flags."""
    return CommandLine(
        "grpc-bootstrap",
        [GrpcBootstrapConfig],
        description='Print the file that GRPC_XDS_BOOTSTRAP names, for gRPC clients without a proxy ("xds:///MODEL").',
        examples=(
            "modelplane grpc-bootstrap --xds 10.0.0.1:18000,10.0.0.2:18000 > xds.json",
            "GRPC_XDS_BOOTSTRAP=xds.json python client.py",
        ),
    )


def run(argv: Sequence[str]) -> int:
    """Print the file."""
    config = command_line().parse(argv)[GrpcBootstrapConfig]
    try:
        text = render_grpc_bootstrap(config.xds, node_id=config.node_id)
    except ValueError as error:
        raise OptionError(str(error)) from None
    sys.stdout.write(text)
    return 0
