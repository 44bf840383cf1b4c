"""The table for gRPC clients without a proxy, filled as it is asked. Pure.

Invariant: it holds the resources of those models, and only those, that a client has asked for by any name; a step costs
what changed of them, however many models nobody asked for. Every listener that was asked for is answered: an unknown
model's says NOT_FOUND to each request, as Envoy does. (If it were left out of the answer, as the protocol would have
it, a new client would wait 15 s for it: C-core takes the absence for an answer to an earlier request.)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from control_plane.model import Model
from control_plane.resources.names import read_name
from control_plane.resources.proxyless import common_resources, listener, proxyless_resources, unknown_listener
from control_plane.resources.resource import LISTENER, Resource
from control_plane.resources.settings import DataPlaneSettings
from control_plane.xds.table import ResourceTable, TableChange

Key = tuple[str, str]


class ProxylessView:
    """`models`: the catalog's, a live view. `most_unknown`: listeners kept for names that nothing stands behind; the
    oldest goes first, and its client is told that it does not exist."""

    def __init__(self, models: Mapping[str, Model], settings: DataPlaneSettings, *, most_unknown: int = 10_000) -> None:
        self.table = ResourceTable()
        self._models = models
        self._settings = settings
        self._most_unknown = most_unknown
        self._asked: dict[str, set[str]] = {}
        """Model -> the names of listeners that were asked for, whether or not there is such a model."""
        self._keys: dict[str, frozenset[Key]] = {}
        """Model -> what the table holds for it; of the same models as `_asked`."""
        self._unknown: dict[str, str] = {}
        """Listener that says NOT_FOUND -> the model that it was asked for; the oldest first."""
        self.table.update(common_resources(settings), (), 0)

    def ask(self, type_url: str, names: Iterable[str], revision: int) -> TableChange | None:
        """A client subscribes to these names. What it did to the table, if anything."""
        touched = set()
        for name in names:
            model, _ = read_name(name)
            asked = self._asked.get(model)
            if not model or name == "*" or (asked is not None and (type_url != LISTENER or name in asked)):
                continue
            if type_url == LISTENER:
                self._asked.setdefault(model, set()).add(name)
            elif model in self._models:
                # A client that comes from another replica may begin with any type that it holds.
                self._asked[model] = set()
            else:
                continue
            touched.add(model)
        return self._translate(touched, revision) if touched else None

    def update(self, changed: Collection[str], revision: int) -> TableChange:
        """These models are different, or gone, as of a registry revision."""
        return self._translate(self._asked.keys() & changed, revision)

    def _translate(self, names: Iterable[str], revision: int) -> TableChange:
        puts: list[Resource] = []
        removes: list[Key] = []
        for name in sorted(names):
            resources = self._resources(name)
            keys = frozenset((resource.type_url, resource.name) for resource in resources)
            removes += sorted(self._keys.get(name, frozenset()) - keys)
            puts += resources
            if keys:
                self._keys[name] = keys
            else:
                self._drop(name)
        forgotten = self._forget()
        kept = [resource for resource in puts if (resource.type_url, resource.name) not in forgotten]
        return self.table.update(kept, (*removes, *forgotten), revision)

    def _resources(self, name: str) -> tuple[Resource, ...]:
        """Those of a model, and a listener for whatever else it was asked for by."""
        model = self._models.get(name)
        known = () if model is None else proxyless_resources(model, self._settings)
        there = {resource.name for resource in known}
        more = []
        for asked in sorted(self._asked[name]):
            _, cluster = read_name(asked)
            if cluster not in there:
                self._unknown.setdefault(asked, name)
                more.append(unknown_listener(asked, name))
                continue
            self._unknown.pop(asked, None)
            if asked != cluster and model is not None:
                more.append(listener(asked, cluster, model, self._settings))
        return (*known, *more)

    def _forget(self) -> dict[Key, None]:
        """Let go of the oldest unknown names if there are too many of them."""
        forgotten: dict[Key, None] = {}
        while len(self._unknown) > self._most_unknown:
            asked = next(iter(self._unknown))
            model = self._unknown.pop(asked)
            key = (LISTENER, asked)
            forgotten[key] = None
            self._asked[model].discard(asked)
            self._keys[model] -= {key}
            if not self._keys[model]:
                self._drop(model)
        return forgotten

    def _drop(self, model: str) -> None:
        del self._asked[model]
        self._keys.pop(model, None)
