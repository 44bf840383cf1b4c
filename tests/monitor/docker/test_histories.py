"""Events may come late, twice or not at all: what is watched in the end is what a fresh list shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.docker.container import read_container
from monitor.docker.core import Decision, DockerCore
from monitor.docker.events import to_look_at
from tests.monitor.docker.inspections import inspection
from tests.support.examples import examples

NAMES = ("a", "b", "pod", "sidecar")
BRIDGES = frozenset({"front", "back"})
STATES = {
    "start": (("created", "exited"), "running"),
    "die": (("running", "paused"), "exited"),
    "pause": (("running",), "paused"),
    "unpause": (("paused",), "running"),
    "destroy": (("created", "exited"), "removing"),
    "rename": (("created", "exited"), ""),
}
ACTIONS = ("create", "start", "die", "pause", "unpause", "destroy", "connect", "disconnect", "sick", "well", "rename")


@dataclass
class Host:
    """A host whose containers live as Docker lets them; every change is told by the engine's event."""

    containers: dict[str, dict[str, Any]] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    clock: int = 0
    _ids: dict[str, str] = field(default_factory=dict)

    def do(self, action: str, name: str, network: str) -> None:
        """Nothing happens where Docker would refuse."""
        self.clock += 1
        if action == "create":
            done = name not in self.containers
            if done:
                self._create(name)
        else:
            one = self.containers.get(name)
            done = one is not None and (self._change(action, one) or self._connect(action, one, network))
        if done:
            self._tell(action, name, network)
        if done and action == "destroy":
            del self.containers[name]

    def _change(self, action: str, one: dict[str, Any]) -> bool:
        if action in ("sick", "well"):
            one["State"]["Health"] = {"Status": "unhealthy" if action == "sick" else "healthy"}
            return True
        allowed, becomes = STATES.get(action, ((), ""))
        if one["State"]["Status"] not in allowed:
            return False
        one["State"] |= {"Status": becomes or one["State"]["Status"], "Paused": becomes == "paused"}
        if action == "start":
            one["State"]["StartedAt"] = f"2026-01-01T00:00:00.{self.clock:09d}Z"
        if action == "rename":
            one["Name"] += "x"
        return True

    def _connect(self, action: str, one: dict[str, Any], network: str) -> bool:
        networks = one["NetworkSettings"]["Networks"]
        if action == "connect" and network not in networks and one["HostConfig"]["NetworkMode"] == "bridge":
            networks[network] = {"IPAddress": f"10.0.{int(network == 'back')}.{self.clock % 250 + 1}"}
            return True
        return action == "disconnect" and networks.pop(network, None) is not None

    def _create(self, name: str) -> None:
        address = {"front": f"10.0.0.{self.clock}"}
        made = inspection(name, identity=f"id-{name}-{self.clock}", status="created", networks=address)
        if name == "sidecar":
            pod = self.containers.get("pod")
            made["HostConfig"]["NetworkMode"] = f"container:{pod['Id'] if pod else 'none'}"
            made["NetworkSettings"]["Networks"] = {}
        if name == "pod":
            made["Config"]["Image"] = "pause"
        self.containers[name] = made
        self._ids[name] = made["Id"]

    def _tell(self, action: str, name: str, network: str) -> None:
        if action in ("connect", "disconnect"):
            attributes = {"container": self._ids[name], "name": network}
            self.events.append(
                {"Type": "network", "Action": action, "Actor": {"ID": network, "Attributes": attributes}}
            )
            return
        action = {"sick": "health_status: unhealthy", "well": "health_status: healthy"}.get(action, action)
        self.events.append({"Type": "container", "Action": action, "Actor": {"ID": self._ids[name]}})

    def look(self, core: DockerCore, event: dict[str, Any]) -> None:
        """What the shell does on an event: it sees the container as it is now, however old the event is."""
        wanted = to_look_at(event)
        assert wanted, event
        found = [one for one in self.containers.values() if one["Id"] == wanted]
        if found:
            core.seen(read_container(found[0]))
        else:
            core.gone(wanted)

    def list(self, core: DockerCore) -> None:
        core.listed([read_container(one) for one in self.containers.values()], BRIDGES)


steps = st.tuples(
    st.sampled_from(ACTIONS),
    st.sampled_from(NAMES),
    st.sampled_from(("front", "back")),
    st.sampled_from(("now", "later", "twice", "lost")),
    st.booleans(),
)


def _shape(decision: Decision) -> tuple[Any, ...]:
    """All but the addresses, which a watched run keeps as long as they are good."""
    targets = {
        name: (target.container, target.run, target.held, target.unhealthy) for name, target in decision.targets.items()
    }
    return targets, {name: refusal.reason for name, refusal in decision.refusals.items()}


@settings(max_examples=examples(50))
@given(st.lists(steps, min_size=10, max_size=40))
def test_any_history_ends_in_what_a_list_shows(history: list[tuple[str, str, str, str, bool]]) -> None:
    host, core = Host(), DockerCore("h")
    for name in ("b", "pod", "sidecar"):
        host.do("create", name, "")
        host.do("start", name, "")
    host.list(core)
    late: list[dict[str, Any]] = []
    lost = False
    for action, name, network, delivery, reverse in history:
        before = len(host.events)
        host.do(action, name, network)
        for event in host.events[before:]:
            if delivery == "lost":
                lost = True
            elif delivery == "later":
                late.insert(0 if reverse else len(late), event)
            else:
                for _ in range(2 if delivery == "twice" else 1):
                    host.look(core, event)
            core.decide()
    for event in late:
        host.look(core, event)
    if lost:
        # The stream broke: the engine's return brings a list.
        host.list(core)
    fresh = DockerCore("h")
    host.list(fresh)
    decided, expected = core.decide(), fresh.decide()
    assert _shape(decided) == _shape(expected)
    for target in decided.targets.values():
        (one,) = (one for one in host.containers.values() if one["Id"] == target.container)
        holder = host.containers["pod"] if one["HostConfig"]["NetworkMode"].startswith("container:") else one
        addresses = {network["IPAddress"] for network in holder["NetworkSettings"]["Networks"].values()}
        assert target.place.host in addresses


def test_events_of_no_interest_cost_no_look() -> None:
    for action in ("exec_create: /bin/check", "exec_start: x", "exec_die", "attach", "kill", "top", "resize"):
        assert not to_look_at({"Type": "container", "Action": action, "Actor": {"ID": "x"}}), action
    assert not to_look_at({"Type": "image", "Action": "pull", "Actor": {"ID": "x"}})
    assert not to_look_at({"Type": "network", "Action": "create", "Actor": {"ID": "x"}})
    assert not to_look_at({})
