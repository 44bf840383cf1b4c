"""What there is to look at, in one place. Invariant: reads only, and belongs to the event loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from control_plane.xds.server import XdsServer
from control_plane.xds.table import ResourceTable

ENVOY_VIEW = "envoy"


@dataclass(frozen=True, slots=True)
class Inside:
    """One replica: its name, the version of its code, its streams and its tables by the name of their view."""

    replica: str
    version: str
    xds: XdsServer
    views: Mapping[str, ResourceTable]

    @property
    def revision(self) -> int:
        """The registry revision that the tables reflect."""
        return max(table.revision for table in self.views.values())
