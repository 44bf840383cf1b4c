"""Inspections as the engine sends them, cut down to what is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ENTRYPOINT = ["/usr/bin/tf_serving_entrypoint.sh"]
IMAGE_ENV = ["PATH=/usr/bin", "MODEL_NAME=model", "MODEL_BASE_PATH=/models"]


def inspection(
    name: str,
    *,
    identity: str = "",
    status: str = "running",
    run: str = "2026-01-01T00:00:00Z",
    image: str = "tensorflow/serving:2.19.0",
    labels: Mapping[str, str] | None = None,
    entrypoint: list[str] | None = ENTRYPOINT,
    command: list[str] | None = None,
    env: list[str] | None = IMAGE_ENV,
    networks: Mapping[str, str] | None = None,
    network_mode: str = "bridge",
    ports: Mapping[str, Any] | None = None,
    health: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    state = {"Status": status, "Running": status in ("running", "paused"), "Paused": status == "paused"}
    state |= {"ExitCode": 137 if status == "exited" else 0, "StartedAt": run}
    if health is not None:
        state["Health"] = dict(health)
    addresses = {"bridge": "172.17.0.2"} if networks is None else networks
    return {
        "Id": identity or f"id-{name}",
        "Name": f"/{name}",
        "Config": {"Image": image, "Labels": labels, "Entrypoint": entrypoint, "Cmd": command, "Env": env},
        "State": state,
        "HostConfig": {"NetworkMode": network_mode},
        "NetworkSettings": {
            "Networks": {one: {"IPAddress": address, "GlobalIPv6Address": ""} for one, address in addresses.items()},
            "Ports": dict(ports or {}),
        },
    }
