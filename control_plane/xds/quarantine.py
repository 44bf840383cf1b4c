"""What is kept of a resource that Envoys refuse. Data only; table.py decides, warden.py acts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from control_plane.resources.resource import Resource

Key: TypeAlias = tuple[str, str]
"""A resource's type URL and name."""


@dataclass(frozen=True, slots=True)
class Blame:
    """Who refused a resource, and why.

    `node` and `peer` are the Envoy's node id and address; `field` is the field that its message blames, empty if it
    blames none; `at` is in seconds since the epoch.
    """

    node: str
    peer: str
    field: str
    message: str
    at: float


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A resource version that was refused by itself and acknowledged by nobody.

    While it lasts every stream is offered `last_good_version`, the newest that any stream of this replica has
    acknowledged. Where there is none (None), the name is withheld: it is sent to nobody, and nobody is told to remove
    it; a stream that connects may be sent it once, to see. `since_revision` is the registry revision that the table had
    when the version was refused.
    """

    model: str
    version: str
    last_good_version: str | None
    node: str
    peer: str
    field: str
    message: str
    since_revision: int
    at: float

    @classmethod
    def of(cls, refused: Resource, last_good_version: str | None, blame: Blame, since_revision: int) -> Quarantined:
        """The record of a refusal."""
        return cls(
            model=refused.model,
            version=refused.version,
            last_good_version=last_good_version,
            node=blame.node,
            peer=blame.peer,
            field=blame.field,
            message=blame.message,
            since_revision=since_revision,
            at=blame.at,
        )
