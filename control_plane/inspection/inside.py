"""What there is to look at, in one place. Invariant: reads only, and belongs to the event loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from control_plane.xds.server import XdsServer
from control_plane.xds.table import ResourceTable


@dataclass(frozen=True, slots=True)
class Inside:
    """One replica: its name, the version of its code, and its streams with the tables that they are served from."""

    replica: str
    version: str
    xds: XdsServer
    guard: Callable[[], Mapping[str, Any]] = dict
    """What is held against lost leases, see guard.py."""

    @property
    def tables(self) -> Mapping[str, ResourceTable]:
        """The tables by the name of their view; Envoys' comes first."""
        return {view.name: view.table for view in self.xds.views}

    @property
    def revision(self) -> int:
        """The registry revision that the tables reflect."""
        return max(table.revision for table in self.tables.values())
