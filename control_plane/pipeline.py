"""registry -> catalog -> resources, as one pure step: an update in, the table's change out.

Invariant: what is in the table is the translation of the catalog's models and nothing else; a step touches only the
resources of the models that changed.
"""

from __future__ import annotations

from collections.abc import Mapping

from control_plane.catalog import Catalog
from control_plane.resources.resource import Resource
from control_plane.resources.settings import DataPlaneSettings
from control_plane.resources.translate import fleet_resources, model_resources
from control_plane.routes import Routes
from control_plane.suspects import Verdict
from control_plane.xds.table import ResourceTable, TableChange
from registry.follow import Changes, Connection, Snapshot


class Pipeline:
    """Owns the catalog and the table. Not for threads."""

    def __init__(
        self, catalog: Catalog, table: ResourceTable, settings: DataPlaneSettings, *, empty_grace: float = 0.0
    ) -> None:
        """`empty_grace`: seconds for which an implausible registry is not believed at the start: one without a single
        instance, or of which another replica says that it holds suspects. It may have lost its data just now, and
        Envoys that know better would be told to forget what is missing."""
        self.catalog = catalog
        self.table = table
        self._settings = settings
        self.changed: frozenset[str] = frozenset()
        """The models that the last step changed, for whoever else translates them."""
        self._names: dict[str, frozenset[tuple[str, str]]] = {}
        self._routes = Routes()
        self._fleet_is_stale = True
        self._empty_grace = empty_grace
        self._empty_until: float | None = None
        self.implausible = ""
        """Why what the registry held at the start is not believed yet; empty if it is."""

    def apply(self, update: Snapshot | Changes | Connection, now: float) -> TableChange:
        """Take in a registry update. `now` in monotonic seconds."""
        change = self._translate(self.catalog.apply(update, now))
        if isinstance(update, Snapshot):
            self.implausible = _implausible(self.catalog) if self._empty_grace else ""
            if self.implausible:
                self._empty_until = now + self._empty_grace
            else:
                self.table.mark_ready()
        return change

    def checked(self, verdicts: Mapping[str, tuple[Verdict, str]]) -> TableChange:
        """Take in what the checks of suspects say."""
        return self._translate(self.catalog.checked(verdicts))

    def expire(self, now: float) -> TableChange:
        """Give up what has been in doubt for too long."""
        if self._empty_until is not None and now >= self._empty_until:
            self._empty_until = None
            self.implausible = ""
            self.table.mark_ready()
        return self._translate(self.catalog.expire(now))

    def next_deadline(self, now: float) -> float | None:
        """When to call `expire` next; None if nothing is in doubt."""
        times = (self.catalog.next_deadline(now), self._empty_until)
        return min((time for time in times if time is not None), default=None)

    def _translate(self, changed: frozenset[str]) -> TableChange:
        self.changed = changed
        puts: list[Resource] = []
        removes: list[tuple[str, str]] = []
        for name in sorted(changed):
            model = self.catalog.models.get(name)
            resources = () if model is None else model_resources(model, self._settings)
            names = frozenset((resource.type_url, resource.name) for resource in resources)
            removes += sorted(self._names.pop(name, frozenset()) - names)
            if names:
                self._names[name] = names
            puts += resources
        self._fleet_is_stale |= self._routes.update(changed, self.catalog.models)
        if self._fleet_is_stale:
            puts += fleet_resources(self._routes.pins, self._settings, self._routes.routings)
            self._fleet_is_stale = False
        return self.table.update(puts, removes, self.catalog.revision)


def _implausible(catalog: Catalog) -> str:
    if not catalog.instances and not catalog.suspects:
        return "the registry holds no instance"
    if catalog.suspects_elsewhere:
        return f"another control plane says that {catalog.suspects_elsewhere} more instances lost their leases"
    return ""
