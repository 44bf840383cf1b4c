"""Containers that the profile `discovery` of compose.yaml is to find, started beside the stack as users start them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.compose import OFFICIAL, Compose
from tests.support.waiting import eventually

_PROFILE = ("--profile", "discovery")
_ASK = """
import http.client, sys
for method, path in zip(sys.argv[1::2], sys.argv[2::2]):
    connection = http.client.HTTPConnection("docker-socket:2375", timeout=10)
    connection.request(method, path)
    print(connection.getresponse().status)
"""


class Discovery:
    """One monitor for the host, in the stack. `started` are containers outside of it; `close` removes those."""

    def __init__(self, compose: Compose, folder: Path) -> None:
        self._compose = compose
        self._folder = folder
        self._api = compose.engine.api
        self._host = str(self._api.info()["Name"])
        self._made: list[str] = []

    def up(self) -> None:
        """The profile's services, or what is missing of them."""
        self._compose(*_PROFILE, "up", "-d", "--wait", "--no-build", "--no-recreate")

    def container(self, service: str) -> str:
        """The id of one of its two."""
        return self._compose(*_PROFILE, "ps", "-aq", service).strip()

    def ask(self, *requests: tuple[str, str]) -> list[int]:
        """The statuses with which the socket's proxy answers the monitor's container, asked (method, path)."""
        words = [word for request in requests for word in request]
        said = self._compose(*_PROFILE, "exec", "-T", "discovery", "python3", "-c", _ASK, *words)
        return [int(line) for line in said.split()]

    def run(self, name: str, *command: str, image: str = OFFICIAL, **more: Any) -> str:
        """`docker run -d --init --network …`; the container's name."""
        name = f"mp-{os.getpid()}-{name}"
        host = self._api.create_host_config(init=True, binds=self._compose.binds, network_mode=self._compose.network)
        self._api.create_container(image, list(command), name=name, host_config=host, **more)
        self._made.append(name)
        self._api.start(name)
        return name

    @contextmanager
    def project(self, service: str) -> Iterator[str]:
        """A Compose project of its own with this one service, in the stack's network; the container's name."""
        project = f"mp-{os.getpid()}-other"
        described = {
            "image": OFFICIAL,
            "init": True,
            "environment": {"MODEL_NAME": "half_plus_two"},
            "volumes": self._compose.binds,
        }
        networks = {"default": {"external": True, "name": self._compose.network}}
        file = self._folder / "other.json"
        file.write_text(json.dumps({"services": {service: described}, "networks": networks}))
        files = ("--project-name", project, "--file", str(file))
        try:
            self._compose(*files, "up", "-d", "--no-build")
            yield f"{project}-{service}-1"
        finally:
            self._compose(*files, "down", "--timeout", "1")

    async def instances(self) -> Mapping[str, str]:
        """What the registry has of this host's containers: name to state."""
        said = await asyncio.to_thread(self._compose.modelplane, "get", "instances", "-o", "json")
        found = {one["instance"]: one["state"] for one in json.loads(said)["instances"]}
        return {name.removesuffix(f"@{self._host}"): state for name, state in found.items() if "@" in name}

    async def until(self, *names: str) -> None:
        """Exactly these containers are instances, and serve."""

        async def there() -> bool:
            found = await self.instances()
            assert found == dict.fromkeys(names, "SERVING"), found
            return True

        await eventually(there, f"the instances {names}", 60)

    async def share(self, *names: str) -> None:
        """Each of these containers gets something of the load."""
        before = {name: self._compose.received(name) for name in names}

        def all_have() -> bool:
            got = {name: self._compose.received(name) - count for name, count in before.items()}
            assert min(got.values()) > 200, got
            return True

        await eventually(all_have, f"{names} get their share", 60)

    def close(self) -> None:
        """The stack is as it was before."""
        for name in self._made:
            with contextlib.suppress(Exception):
                self._api.remove_container(name, force=True)
        self._compose(*_PROFILE, "rm", "-f", "-s", "discovery", "docker-socket")
        # A `down` without the profile would leave it.
        for network in self._api.networks(names=[self._compose.network.replace("default", "docker-socket")]):
            self._api.remove_network(network["Id"])
