"""Feeds generated resources to a real Envoy from files, without a control plane: what ADS would carry comes from one
file per resource name. Only where a resource comes from is changed, never what it says."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from envoy.config.bootstrap.v3 import bootstrap_pb2  # noqa: F401 - registers what an Any may hold
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import config_source_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import any_pb2

from control_plane.resources.resource import CLUSTER, CLUSTER_LOAD_ASSIGNMENT, EXTENSION_CONFIG, LISTENER, Resource


class FileXds:
    """A folder of xDS files. `publish` writes what changed; Envoy notices by itself."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, int] = {}
        folder.mkdir(exist_ok=True)

    @property
    def override(self) -> str:
        """What of a bootstrap must be different for Envoy to read this folder."""
        sources = {kind: {"path_config_source": {"path": str(self._path(url))}} for kind, url in _ROOTS}
        return json.dumps({"dynamic_resources": sources})

    def publish(self, resources: Iterable[Resource]) -> None:
        """Replace all resources; those that others refer to are written first."""
        by_type: dict[str, list[any_pb2.Any]] = {CLUSTER: [], LISTENER: []}
        for resource in resources:
            wrapped = any_pb2.Any.FromString(resource.body)
            if resource.type_url in (CLUSTER_LOAD_ASSIGNMENT, EXTENSION_CONFIG):
                self._write(self._path(resource.type_url, resource.name), [wrapped])
            elif resource.type_url == CLUSTER:
                by_type[CLUSTER].append(self._with_local_endpoints(wrapped))
            else:
                by_type[LISTENER].append(self._with_local_router(wrapped))
        for url in (CLUSTER, LISTENER):
            self._write(self._path(url), by_type[url])

    def _path(self, type_url: str, name: str = "") -> Path:
        # Names of clusters hold slashes and may be long.
        number = self._files.setdefault(f"{type_url} {name}", len(self._files))
        return self.folder / f"{number}.pb"

    def _write(self, path: Path, resources: list[any_pb2.Any]) -> None:
        content = discovery_pb2.DiscoveryResponse(resources=resources).SerializeToString(deterministic=True)
        if path.exists() and path.read_bytes() == content:
            return
        scratch = path.with_suffix(".new")
        scratch.write_bytes(content)
        scratch.rename(path)  # Envoy watches for a file that is moved here

    def _local(self, source: Any, path: Path) -> None:
        assert source.WhichOneof("config_source_specifier") == "ads"
        source.path_config_source.CopyFrom(config_source_pb2.PathConfigSource(path=str(path)))

    def _with_local_endpoints(self, wrapped: any_pb2.Any) -> any_pb2.Any:
        cluster = cluster_pb2.Cluster()
        assert wrapped.Unpack(cluster)
        if cluster.type == cluster.EDS:
            self._local(cluster.eds_cluster_config.eds_config, self._path(CLUSTER_LOAD_ASSIGNMENT, cluster.name))
        return _packed(cluster)

    def _with_local_router(self, wrapped: any_pb2.Any) -> any_pb2.Any:
        listener, manager = listener_pb2.Listener(), http_connection_manager_pb2.HttpConnectionManager()
        assert wrapped.Unpack(listener)
        config = listener.filter_chains[0].filters[0].typed_config
        assert config.Unpack(manager)
        discovered = manager.http_filters[0]
        path = self._path(EXTENSION_CONFIG, discovered.name)
        self._local(discovered.config_discovery.config_source, path)
        config.Pack(manager)
        return _packed(listener)


_ROOTS = (("cds_config", CLUSTER), ("lds_config", LISTENER))


def _packed(message: Any) -> any_pb2.Any:
    wrapped = any_pb2.Any()
    wrapped.Pack(message)
    return wrapped
