"""A replica's part in deciding: it stands for election once it can serve, leads while it is elected, and gives up the
lead when it stops. Invariant: nothing here ends the replica, whatever fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from control_plane.election import Election
from control_plane.leader import Figures, Leader, Means
from control_plane.planning.plan import GRACE, Settings
from registry.etcd import EtcdClient
from registry.follow import Changes, Update
from registry.keys import Keyspace, LeaderKey


@dataclass(frozen=True, slots=True)
class LeadingConfig:
    """Whether a replica decides, and how. Times in seconds."""

    leader: bool = field(
        default=True,
        metadata={
            "help": "stand for election as the one control plane that carries out policies: places models, moves "
            "traffic between versions"
        },
    )
    placement_grace: float = field(
        default=GRACE,
        metadata={
            "help": "how long an instance that is lost or drained keeps its models before they are placed elsewhere",
            "metavar": "SECONDS",
        },
    )

    def __post_init__(self) -> None:
        if not 0 <= self.placement_grace < float("inf"):
            raise ValueError(f"placement_grace: {self.placement_grace} is not possible; give at least 0 seconds")


class Leading:
    """`run` until cancelled, then `close`."""

    def __init__(
        self,
        config: LeadingConfig,
        keyspace: Keyspace,
        replica: str,
        ttl: float,
        suspects: Callable[[], frozenset[str]],
    ) -> None:
        """`ttl`: seconds until another replica may lead if this one dies; `suspects`: see Means."""
        self._config, self._keyspace, self._replica = config, keyspace, replica
        self._ttl, self._suspects = ttl, suspects
        self._key = keyspace.make(LeaderKey())
        self._may_stand = asyncio.Event()
        self._election: Election | None = None
        self.figures = Figures()
        """What it counts as the leader."""

    @property
    def leader(self) -> str:
        """Who leads, as far as this replica knows; empty: nobody, or it does not stand."""
        return self._election.leader if self._election is not None else ""

    def may_stand(self) -> None:
        """This replica has read the registry."""
        self._may_stand.set()

    def heard(self, update: Update) -> None:
        """An update of the registry: who waits for the lead is to know at once that it is free."""
        if self._election is None or not isinstance(update, Changes):
            return
        if self._key in update.deletes or self._key in update.puts or update.relisted:
            self._election.doubt()

    async def run(self, client: EtcdClient) -> None:
        """Stand and lead."""
        if not self._config.leader:
            return
        await self._may_stand.wait()
        self._election = election = Election(client, self._key, self._replica, self._ttl)
        settings = Settings(self._config.placement_grace)
        means = Means(client, self._keyspace, election, self._replica, settings, self._suspects)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(election.run(), name="election")
            tasks.create_task(Leader(means, self.figures).run(), name="leader")

    async def close(self) -> None:
        """Give up the lead, so that another replica has it at once."""
        if self._election is not None:
            await self._election.resign()
