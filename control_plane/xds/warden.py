"""From what the streams tell of refusals to the table's quarantine, and what the operator is told of it.

Invariant: only the refusal of a single resource puts it under quarantine, and every step of one is logged with its
model, resource, version and Envoy.
"""

from __future__ import annotations

import logging

from control_plane.xds.blame import field_of
from control_plane.xds.events import Acquitted, Refused, StreamEvent, short_type
from control_plane.xds.quarantine import Blame
from control_plane.xds.table import ResourceTable, TableChange

log = logging.getLogger(__name__)

RETRY_SECONDS = 10.0
"""What is withheld is tried with Envoys that connect, but not more often than this: they may all come at once."""


def judge(table: ResourceTable, event: StreamEvent, peer: str, at: float) -> TableChange | None:
    """Act on what a stream of this table told. What is to be published, if anything; `at` is in seconds since the
    epoch."""
    match event:
        case Refused() if event.version:
            return _refused(table, event, peer, at)
        case Acquitted():
            return _acquitted(table, event)
    return None


def tell_trials(change: TableChange) -> None:
    """Log what an update offers in place of what was quarantined."""
    for one in change.changes:
        if one.trial and one.new is not None:
            log.info(
                "%s %s of %s: version %s is tried, the one before was quarantined",
                short_type(one.type_url), one.name, _named(one.new.model), one.new.version,
            )  # fmt: skip


def _refused(table: ResourceTable, event: Refused, peer: str, at: float) -> TableChange | None:
    (name,) = event.names
    known = table.quarantined.get((event.type_url, name))
    field = field_of(event.message)
    change = table.quarantine(event.type_url, name, event.version, Blame(event.node, peer, field, event.message, at))
    what = f"{short_type(event.type_url)} {name} of {_named(event.models[0] if event.models else '')}"
    record = table.quarantined.get((event.type_url, name))
    if not change.changes:
        current = table.get(event.type_url, name)
        if record is None and current is not None and current.version == event.version:
            log.warning(
                "%s: only Envoy %s at %s refuses version %s, another one has taken it",
                what, event.node, peer, event.version,
            )  # fmt: skip
        return None
    if known is None and record is not None:
        log.error(
            "%s: version %s is quarantined, because Envoy %s at %s refused %s; %s",
            what, event.version, event.node, peer, field or "it",
            "no version of it was ever good, so it is withheld"
            if record.last_good_version is None
            else f"all have the last good version {record.last_good_version}",
        )  # fmt: skip
    return change


def _acquitted(table: ResourceTable, event: Acquitted) -> TableChange | None:
    record = table.quarantined.get((event.type_url, event.name))
    if record is None or record.version != event.version:
        return None
    log.info(
        "%s %s of %s: version %s is no longer quarantined, Envoy %s has taken it",
        short_type(event.type_url), event.name, _named(record.model), event.version, event.node,
    )  # fmt: skip
    return table.acquit(event.type_url, event.name, event.version)


def _named(model: str) -> str:
    return f"model {model}" if model else "all models"
