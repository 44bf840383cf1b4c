"""`modelplane envoy-bootstrap`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from control_plane.envoy_files import render_bootstrap
from modelplane.commandline import CommandLine
from modelplane.errors import OptionError


@dataclass(frozen=True, slots=True)
class BootstrapConfig:
    """What differs from one Envoy box to the next."""

    xds: tuple[str, ...] = field(
        default=("127.0.0.1:18000",),
        metadata={"help": "the control planes, any of which will do", "metavar": "HOST:PORT"},
    )
    node_id: str = field(
        default="modelplane-envoy",
        metadata={"help": "the name of this Envoy, its own, so that a control plane can tell which", "metavar": "NAME"},
    )
    admin: str = field(
        default="127.0.0.1:9901",
        metadata={"help": "Envoy's admin address; whoever reaches it can stop the Envoy", "metavar": "HOST:PORT"},
    )
    on_demand_clusters: bool = field(
        default=False,
        metadata={
            "help": "ask for a model's clusters when a request needs them, not for all of them at the start; for "
            "control planes that run with the same flag"
        },
    )
    stats_listen: str = field(
        default="",
        metadata={
            "help": "where Envoy shows its own metrics to Prometheus: GET /stats/prometheus, and nothing else of its "
            "admin interface; empty: nowhere",
            "metavar": "HOST:PORT",
        },
    )
    stats_of_models: bool = field(
        default=False,
        metadata={
            "help": "with --stats-listen: also the metrics of each model's clusters, 7 lines for one that is idle, "
            "more for one in use; the control planes tell requests and errors by version without it"
        },
    )


def command_line() -> CommandLine:
    """The flags."""
    return CommandLine(
        "envoy-bootstrap",
        [BootstrapConfig],
        description="Print the bootstrap that an Envoy starts with. All else comes from the control plane.",
        examples=("modelplane envoy-bootstrap --xds plane-0:18000,plane-1:18000 > envoy.yaml && envoy -c envoy.yaml",),
    )


def run(argv: Sequence[str]) -> int:
    """Print the file."""
    config = command_line().parse(argv)[BootstrapConfig]
    try:
        text = render_bootstrap(
            config.xds,
            admin=config.admin,
            node_id=config.node_id,
            on_demand_clusters=config.on_demand_clusters,
            stats=config.stats_listen,
            stats_of_models=config.stats_of_models,
        )
    except ValueError as error:
        raise OptionError(str(error)) from None
    sys.stdout.write(text)
    return 0
