"""Decides which containers are watched, where, and as what. No I/O: what was seen of containers comes in.

Invariant: the decision is a function of what every container was like when it was last looked at, and of what was
decided before only in this: a run that is watched keeps its name and, as long as it is reached there, its address. So
after any history of events it is what a fresh list would have led to.

An instance is called CONTAINER@HOST, both by name, so that it stays the same when a container is started again or
replaced by one of the same name, and differs between hosts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from monitor.docker.container import Container
from monitor.docker.place import Place, View, places
from monitor.docker.refusal import Reason, Refusal, Refused
from monitor.docker.wishes import Wishes, check_enabled, read_wishes, runs_monitor
from monitor.servables import WatchedModel
from monitor.server_flags import ServerFlags


@dataclass(frozen=True, slots=True)
class Target:
    """One instance to watch. `held`: why its server can't answer at present, empty if it can; `remarks`: what to say of
    it otherwise; `managed`, `labels`, `memory`: see Wishes. A target with another `identity` is another server, or the
    same one elsewhere."""

    instance: str
    container: str
    name: str
    run: str
    place: Place
    models: tuple[WatchedModel, ...] = ()
    config_file: str = ""
    zone: str = ""
    capacity: int = 1
    held: str = ""
    unhealthy: str = ""
    remarks: str = ""
    managed: ServerFlags | None = None
    labels: tuple[str, ...] = ()
    memory: int = 0

    @property
    def identity(self) -> Target:
        """The target without what changes while it is watched."""
        return replace(self, held="", unhealthy="", remarks="")


@dataclass(frozen=True, slots=True)
class Decision:
    """`targets` by instance name; `refusals` by container name."""

    targets: Mapping[str, Target] = field(default_factory=dict)
    refusals: Mapping[str, Refusal] = field(default_factory=dict)


class DockerCore:
    """One host. `own_id` is the id of the container that the monitor runs in, empty if it runs on the host itself."""

    def __init__(
        self,
        host: str,
        own_id: str = "",
        networks: tuple[str, ...] = (),
        advertise: str = "",
    ) -> None:
        self._host = host
        self._own_id = own_id
        self._view = View(networks=networks, advertise=advertise)
        self._containers: dict[str, Container] = {}
        self._watched: dict[str, Target] = {}
        """By container id, as decided last."""

    def listed(self, containers: Iterable[Container], bridges: frozenset[str]) -> None:
        """All containers that there are now, running or not, and the networks that the host itself reaches."""
        self._containers = {container.id: container for container in containers}
        self._view = replace(self._view, bridges=bridges)

    def seen(self, container: Container) -> None:
        """A look at one container."""
        self._containers[container.id] = container

    def gone(self, container_id: str) -> None:
        """There is no such container any more."""
        self._containers.pop(container_id, None)

    def knows(self, networks: Iterable[str]) -> bool:
        """Whether all of these networks were there when the list was made: a new one makes a new list necessary."""
        known = self._view.bridges | {name for one in self._containers.values() for name in one.networks}
        return known.issuperset(networks)

    def decide(self) -> Decision:
        """What is to be watched now."""
        view = replace(self._view, own=self._containers.get(self._own_id))
        if view.own is not None:
            holder = self._holder(view.own)
            view = replace(view, own=replace(view.own, networks=holder.networks, network_mode=holder.network_mode))
        targets: dict[str, Target] = {}
        refusals: dict[str, Refusal] = {}
        monitored = self._monitored()
        for container in sorted(self._containers.values(), key=self._order):
            try:
                target = self._target(container, view, monitored)
                if target.instance in targets:
                    other = targets[target.instance].name
                    raise Refused(Reason.NAME_TAKEN, f"container {other} is the instance {target.instance} already")
            except Refused as refused:
                refusals[container.name] = refused.refusal
            else:
                targets[target.instance] = target
        self._watched = {target.container: target for target in targets.values()}
        return Decision(targets, refusals)

    def _order(self, container: Container) -> tuple[bool, str, str]:
        # Whoever has a name keeps it; else who started first, which a later list shows just as well.
        return container.id not in self._watched, container.run, container.id

    def _target(self, container: Container, view: View, monitored: Mapping[str, str]) -> Target:
        if container.id == self._own_id or runs_monitor(container):
            raise Refused(Reason.IS_MONITOR, "it runs a monitor of its own")
        check_enabled(container)
        if not container.alive:
            code = f" with code {container.exit_code}" if container.status == "exited" else ""
            raise Refused(Reason.NOT_RUNNING, f"it is {container.status or 'in no state'}{code}")
        holder = self._holder(container)
        if other := monitored.get(holder.id):
            raise Refused(Reason.HAS_MONITOR, f"container {other}, in the same network, runs a monitor for it")
        wishes = read_wishes(container)
        last = self._watched.get(container.id)
        kept = last if last is not None and last.run == container.run else None
        found = places(holder, wishes.port, wishes.rest_port, view)
        return Target(
            instance=kept.instance if kept else wishes.instance or f"{container.name}@{self._host}",
            container=container.id,
            name=container.name,
            run=container.run,
            place=kept.place if kept and kept.place in found else found[0],
            models=wishes.models,
            config_file=wishes.config_file,
            zone=wishes.zone,
            capacity=wishes.capacity,
            held="its container is paused" if container.paused else "",
            unhealthy=_unhealthy(container),
            remarks=_remarks(wishes),
            managed=wishes.managed,
            labels=wishes.labels,
            memory=wishes.memory,
        )

    def _holder(self, container: Container) -> Container:
        """The container whose network it uses, itself in most cases. Raises Refused if that one is not there."""
        holder = container
        for _ in range(3):  # the engine follows one step; more would be a loop
            if not holder.network_of:
                return holder
            wanted = holder.network_of
            found = [one for one in self._containers.values() if wanted in (one.id, one.name)]
            if not found or not found[0].alive:
                break
            holder = found[0]
        raise Refused(Reason.NO_ADDRESS, f"it uses the network of container {holder.network_of}, which does not run")

    def _monitored(self) -> Mapping[str, str]:
        """Network holders whose servers have a monitor of their own beside them, and its name."""
        found = {}
        for container in self._containers.values():
            if container.network_of and container.alive and container.id != self._own_id and runs_monitor(container):
                try:
                    found[self._holder(container).id] = container.name
                except Refused:
                    continue
        return found


def _unhealthy(container: Container) -> str:
    if container.health != "unhealthy":
        return ""
    return f"its container's health check fails: {container.health_output[:200] or 'without a word'}"


def _remarks(wishes: Wishes) -> str:
    return f"labels that are not known: {', '.join(wishes.unknown)}" if wishes.unknown else ""
