"""A fleet in memory whose monitors carry out what the planner assigns, through the registry's own records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from control_plane.planning.plan import Decisions, Settings, plan
from control_plane.planning.state import MEMORY_FACTOR, FleetState
from registry.assignments import Assignment, encode_assignment
from registry.drains import DrainRecord, encode_drain
from registry.events import Event
from registry.follow import Changes, Snapshot
from registry.found import Found, FoundModel, encode_found
from registry.keys import (
    AssignmentKey,
    DiskKey,
    DrainKey,
    InstanceKey,
    Key,
    Keyspace,
    PolicyKey,
    ReadyKey,
    RolloutKey,
    TrafficKey,
)
from registry.policy.stored import StoredPolicy, encode_stored
from registry.records import (
    Condition,
    InstanceRecord,
    InstanceState,
    ReadyRecord,
    ReadyState,
    Servable,
    ServableState,
    encode_instance,
    encode_ready,
)
from registry.rollouts import encode_rollout
from registry.traffic import encode_traffic

SPACE = Keyspace()
BEGAN = 1_700_000_000.0
Servables = dict[tuple[str, int], ReadyState]


def document(name: str, **spec: Any) -> dict[str, Any]:
    """A policy's document."""
    spec = {"basePath": f"/models/{name}", **spec}
    return {
        "apiVersion": "modelplane/v1",
        "kind": "Model",
        "metadata": {"name": name},
        "spec": {key: value for key, value in spec.items() if value is not None},
    }


@dataclass(slots=True)
class Server:
    """One managed instance. `disk`: bytes by model and version; `failing`: what can't be loaded."""

    zone: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    memory: int = 0
    managed: bool = True
    alive: bool = True
    disk: dict[str, dict[int, int]] = field(default_factory=dict)
    held: Servables = field(default_factory=dict)
    failed: set[tuple[str, int]] = field(default_factory=set)


class PlannedFleet:
    """Change it, `step` the planner, let the monitors `obey` and loads `finish`."""

    def __init__(self, grace: float = 30.0) -> None:
        self.state = FleetState(SPACE)
        self.now = BEGAN
        self.revision = 0
        self.servers: dict[str, Server] = {}
        self.settings = Settings(grace)
        self.events: list[Event] = []
        self.generations: dict[str, int] = {}
        self.documents: dict[str, Mapping[str, Any]] = {}
        self.entries: dict[str, bytes] = {}
        self.leaders = 0
        self.tries: Counter[tuple[str, str, int]] = Counter()
        """Loads that came to an end, by instance, model and version."""

    # -- the operator

    def apply(self, policy: Mapping[str, Any]) -> None:
        name = str(policy["metadata"]["name"])
        self.generations[name] = self.generations.get(name, 0) + 1
        self.documents[name] = policy
        self.put({PolicyKey(name): encode_stored(StoredPolicy(policy, self.generations[name], self.now))})

    def delete(self, model: str) -> None:
        self.put({PolicyKey(model): None})

    def drain(self, name: str, *, on: bool) -> None:
        self.put({DrainKey(name): encode_drain(DrainRecord()) if on else None})

    # -- the instances

    def add(self, name: str, disk: Mapping[str, Iterable[int]], size: int = 100, **how: Any) -> None:
        server = Server(**how)
        server.disk = {model: dict.fromkeys(versions, size) for model, versions in disk.items()}
        self.servers[name] = server
        self.tell(name)

    def copy_files(self, model: str, version: int, size: int = 100, only: Iterable[str] | None = None) -> None:
        for name in self.servers if only is None else only:
            self.servers[name].disk.setdefault(model, {})[version] = size
            self.tell(name)

    def lose(self, name: str) -> None:
        """Its lease ends; the server is gone, and so is all that it held."""
        server = self.servers[name]
        server.alive = False
        self.put({ReadyKey(*servable, name): None for servable in server.held})
        server.held.clear()
        server.failed.clear()
        self.put({InstanceKey(name): None, DiskKey(name): None})

    def come_back(self, name: str) -> None:
        self.servers[name].alive = True
        self.tell(name)

    def obey(self) -> bool:
        """Every monitor begins to load what is assigned, and unloads what is not any more; whether any had to."""
        moved = False
        for name, server in self.servers.items():
            assignment = self.state.assignments.get(name)
            if not server.alive or not server.managed or assignment is None:
                continue
            wanted = {(model, version) for model, one in assignment.models.items() for version in one.versions}
            wanted = {(model, version) for model, version in wanted if version in server.disk.get(model, {})}
            puts: dict[Key, bytes | None] = {}
            for servable in server.held.keys() - wanted:
                del server.held[servable]
                puts[ReadyKey(*servable, name)] = None
            server.failed &= wanted
            for servable in wanted - server.held.keys() - server.failed:
                server.held[servable] = ReadyState.LOADING
                puts[ReadyKey(*servable, name)] = _ready(ReadyState.LOADING)
            if puts:
                moved = True
                self.put(puts)
                self.tell(name)
        return moved

    def loading(self) -> list[tuple[str, str, int]]:
        """Instance, model and version of all that loads."""
        return sorted(
            (name, model, version)
            for name, server in self.servers.items()
            for (model, version), state in server.held.items()
            if state is ReadyState.LOADING
        )

    def finish(self, name: str, model: str, version: int, *, good: bool = True) -> None:
        server = self.servers[name]
        self.tries[name, model, version] += 1
        if good:
            server.held[model, version] = ReadyState.READY
            self.put({ReadyKey(model, version, name): _ready(ReadyState.READY)})
        else:
            del server.held[model, version]
            server.failed.add((model, version))
            self.put({ReadyKey(model, version, name): None})
        self.tell(name)

    def tell(self, name: str) -> None:
        """The monitor writes what there is to say."""
        server = self.servers[name]
        states = {ReadyState.LOADING: ServableState.LOADING, ReadyState.READY: ServableState.AVAILABLE}
        servables = [Servable(model, version, states[state]) for (model, version), state in sorted(server.held.items())]
        failures = [
            Condition("LoadFailed", f"model {m} version {v}: broken", m, v, final=True)
            for m, v in sorted(server.failed)
        ]
        record = InstanceRecord(
            "127.0.0.1", 1, zone=server.zone, state=InstanceState.SERVING, servables=tuple(servables),
            conditions=tuple(failures), managed=server.managed, labels=dict(server.labels), memory=server.memory,
        )  # fmt: skip
        found = {model: FoundModel(f"/models/{model}", dict(versions)) for model, versions in server.disk.items()}
        self.put({InstanceKey(name): encode_instance(record), DiskKey(name): encode_found(Found(found))})

    # -- the leader

    def put(self, changes: Mapping[Key, bytes | None]) -> None:
        self.revision += 1
        puts = {SPACE.make(key): value for key, value in changes.items() if value is not None}
        gone = frozenset(SPACE.make(key) for key, value in changes.items() if value is None)
        self.entries = {key: value for key, value in (self.entries | puts).items() if key not in gone}
        self.state.apply(Changes(self.revision, puts, gone), self.now)

    def another_leader(self) -> None:
        """Somebody else reads it all, and plans on; the statistics that this one adds up are its own."""
        self.leaders += 1
        self.state = FleetState(SPACE)
        self.state.apply(Snapshot(self.revision, self.entries), self.now)

    def decide(self) -> Decisions:
        models, self.state.touched = self.state.touched, set()
        return plan(self.state, self.now, models, settings=self.settings, source=str(self.leaders))

    def write(self, decisions: Decisions) -> None:
        self.events += decisions.events
        changes: dict[Key, bytes | None] = {}
        for instance, one in decisions.assignments.items():
            changes[AssignmentKey(instance)] = encode_assignment(one) if one is not None else None
        for model, record in decisions.traffic.items():
            changes[TrafficKey(model)] = encode_traffic(record) if record is not None else None
        for model, rollout in decisions.rollouts.items():
            changes[RolloutKey(model)] = encode_rollout(rollout) if rollout is not None else None
        if changes:
            self.put(changes)

    def step(self) -> Decisions:
        """Plan what was touched, and write it."""
        decisions = self.decide()
        self.write(decisions)
        return decisions

    def settle(self, rounds: int = 400, bad: Container[tuple[str, str, int]] = ()) -> None:
        """Until nothing moves any more. `bad`: what fails to load, by instance, model and version."""
        for _ in range(rounds):
            decisions = self.step()
            moved = self.obey()
            loading = self.loading()
            for one in loading:
                self.finish(*one, good=one not in bad)
            if not (decisions or moved or loading or self.state.touched):
                return
        raise AssertionError(f"it does not come to rest: {decisions}")

    # -- what there is

    def ready(self, model: str, version: int) -> set[str]:
        return {name for name, server in self.servers.items() if server.held.get((model, version)) is ReadyState.READY}

    def weights(self, model: str) -> Mapping[int, int]:
        record = self.state.traffic.get(model)
        return dict(record.weights) if record is not None else {}

    def assigned(self, model: str) -> dict[str, tuple[int, ...]]:
        return {
            name: one.models[model].versions
            for name, one in sorted(self.state.assignments.items())
            if model in one.models
        }

    def needed(self, name: str, assignment: Assignment | None) -> float:
        """Bytes for what is assigned and what is there."""
        there = set(self.servers[name].held)
        for model, one in assignment.models.items() if assignment is not None else ():
            there |= {(model, version) for version in one.versions}
        sizes = {
            (model, version): size
            for server in self.servers.values()
            for model, versions in server.disk.items()
            for version, size in versions.items()
        }
        return MEMORY_FACTOR * sum(sizes.get(one, 0) for one in there)

    def pass_time(self, seconds: float) -> None:
        """Whatever was to be looked at again is."""
        self.now += seconds
        self.state.touched |= self.state.known_models()


def _ready(state: ReadyState) -> bytes:
    return encode_ready(replace(ReadyRecord(ReadyState.READY, "127.0.0.1", 1, several_versions=True), state=state))
