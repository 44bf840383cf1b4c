"""A real Envoy with the resources that the control plane would send for a set of models, fed from files."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from control_plane.envoy_files import render_bootstrap
from control_plane.model import Endpoint, Model
from control_plane.resources.settings import DataPlaneSettings
from control_plane.resources.translate import fleet_resources, model_resources
from control_plane.routes import Routes
from tests.support.envoy import Envoy
from tests.support.file_xds import FileXds
from tests.support.processes import free_port

PREDICT = "/tensorflow.serving.PredictionService/Predict"
STATUS = "/tensorflow.serving.ModelService/GetModelStatus"


@dataclass(frozen=True)
class Answer:
    """What a client saw: OK with the message and the trailing metadata, or a code with its details."""

    code: grpc.StatusCode
    details: str = ""
    message: bytes = b""
    metadata: Mapping[str, Any] | None = None

    @property
    def identity(self) -> str:
        return str((self.metadata or {}).get("identity"))


class Fleet:
    """Envoy on free ports of 127.0.0.1, and a client's channel to it."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        ports = {"grpc_port": free_port(), "rest_port": free_port()}
        self.settings = DataPlaneSettings(listen_address="127.0.0.1", reuse_port=False, **ports, **settings)
        self.xds = FileXds(folder / "xds")
        self._folder = folder
        self.plane = ""
        """HOST:PORT where the control plane should be; nothing by default, for all comes from files."""
        self.envoy: Envoy

    async def start(self, models: Iterable[Model], pins: Mapping[str, int] | None = None) -> None:
        self.publish(models, pins)
        admin_port = free_port()
        # The real bootstrap, with nothing where its control plane should be.
        bootstrap = render_bootstrap([self.plane or f"127.0.0.1:{free_port()}"], admin=f"127.0.0.1:{admin_port}")
        self.envoy = Envoy(self._folder, bootstrap, admin_port, override=self.xds.override)
        await self.envoy.ready()
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.settings.grpc_port}", options=options)

    def publish(self, models: Iterable[Model], pins: Mapping[str, int] | None = None) -> None:
        """`pins`: besides those of the models with traffic."""
        by_name = {model.name: model for model in models}
        routes = Routes()
        routes.update(by_name, by_name)
        resources = [resource for model in by_name.values() for resource in model_resources(model, self.settings)]
        common = fleet_resources(routes.pins | dict(pins or {}), self.settings, routes.routings)
        self.xds.publish((*resources, *common))

    async def call(self, body: bytes, method: str = PREDICT, timeout: float | None = 20, **metadata: str) -> Answer:
        """One unary call with raw bytes; keyword `x_model_name` is the header x-model-name."""
        pairs = tuple((key.replace("_", "-"), value) for key, value in metadata.items())
        call = self.channel.unary_unary(method)(body, metadata=pairs, timeout=timeout)
        try:
            message = await call
            return Answer(grpc.StatusCode.OK, "", message, dict(await call.trailing_metadata()))
        except grpc.aio.AioRpcError as error:
            return Answer(error.code(), error.details() or "")

    def rest(
        self, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, str, dict[str, str]]:
        """Status, body and headers of one REST request; blocks, so call it in a thread."""
        url = f"http://127.0.0.1:{self.settings.rest_port}{path}"
        request = urllib.request.Request(url, data=body, headers=dict(headers or {}))
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                return response.status, response.read().decode(), dict(response.headers)
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(), dict(error.headers)

    async def close(self) -> None:
        if hasattr(self, "channel"):
            await self.channel.close()
        if hasattr(self, "envoy"):
            self.envoy.close()


def model(name: str, ports: Mapping[int, Iterable[int]], served: int | None = None, *, rest: int = 0) -> Model:
    """A model of instances on 127.0.0.1: version -> gRPC ports. The newest is served unless told otherwise."""
    versions = tuple(
        (version, tuple(Endpoint(f"i{port}", "127.0.0.1", port, rest) for port in ports[version]))
        for version in sorted(ports)
    )
    newest = max((version for version, endpoints in versions if endpoints), default=None)
    return Model(name, versions, newest if served is None else served, pinned=False)
