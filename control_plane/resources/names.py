"""Names of clusters. Invariant: distinct (model, version, protocol) give distinct names, and none of them is a name of
Envoy's own (`@xds`): an `@` or `%` of a model's name is always escaped. envoy/router_common.lua spells names alike.
"""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import quote, unquote

GRPC_LISTENER = "grpc"
REST_LISTENER = "rest"
GRPC_ROUTER = "model_router_grpc"
REST_ROUTER = "model_router_rest"

NOWHERE = "@nowhere"
"""A cluster without an instance, for the routes of gRPC clients that lead to none."""

CONTROL_PLANES = "@xds"
"""Static, in the bootstrap."""

CLUSTER_HEADER = "x-modelplane-cluster"
"""Request header that the model router sets and the routes read."""

MIRRORED_HEADER = "x-modelplane-mirrored"
"""The same, of a request that is copied to one or both of the clusters that the next two name."""

OBSERVE_HEADER = "x-modelplane-observe"
"""The same, of a request whose outcome the access log tells."""

LOGGED_MODEL_HEADER, LOGGED_VERSION_HEADER = "x-modelplane-logged-model", "x-modelplane-logged-version"
"""For the log and the traces, where the settings want them: the model as its client named it, and the version where the
request named it or the router chose it."""

TRACING_COLLECTOR = "@tracing"
"""The cluster that spans are sent to."""

SHADOW_HEADER, COMPARER_HEADER = "x-modelplane-shadow", "x-modelplane-comparer"


# Asked for once per cluster of a model, one after the other.
@lru_cache(maxsize=1024)
def encode_model(name: str) -> str:
    """A model's name for a cluster's: all but `A-Za-z0-9_.:/+~-` percent-encoded, UTF-8, upper-case hex."""
    # quote() leaves A-Za-z0-9_.~- as they are by itself.
    return quote(name, safe="/:+", errors="replace")


def grpc_cluster(model: str, version: int | None = None) -> str:
    """The cluster of one version's gRPC ports, or for None of the version that the fleet serves by default."""
    encoded = encode_model(model)
    return encoded if version is None else f"{encoded}@{version}"


def rest_cluster(model: str, version: int | None = None) -> str:
    """The same for REST ports."""
    return f"@rest/{grpc_cluster(model, version)}"


def read_cluster(cluster: str) -> tuple[str, int | None] | None:
    """The model and version whose requests a cluster gets, gRPC or REST; None: it is no model's."""
    encoded, at, version = cluster.removeprefix("@rest/").partition("@")
    if not encoded or (at and not (version.isascii() and version.isdigit())):
        return None
    return unquote(encoded), int(version) if at else None


def read_name(name: str) -> tuple[str, str]:
    """What a gRPC client's `MODEL` or `MODEL@VERSION` means: the model's name, and the cluster's (`grpc_cluster`).

    A client may escape less than that, but for a `%` or `@` of the model's own name. Of what is no name of ours the
    cluster is none of ours either.
    """
    encoded, at, version = name.partition("@")
    model = unquote(encoded)
    return model, f"{encode_model(model)}{at}{version}"


def grpc_target(model: str, version: int | None = None) -> str:
    """What a gRPC client without a proxy opens its channel to. The name is escaped twice: once because it is a
    cluster's, and once more because a target is a URI."""
    return f"xds:///{quote(grpc_cluster(model, version), safe='/:+@')}"
