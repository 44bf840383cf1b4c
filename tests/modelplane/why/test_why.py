"""`modelplane why` and `modelplane rollout status` against a real etcd."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from control_plane.config import ControlPlaneConfig
from control_plane.planning.canary import step_canary
from control_plane.service import ControlPlane
from modelplane import cli
from modelplane.access import FleetConfig
from modelplane.commands import rollout_status, why
from modelplane.planes import PlaneConfig
from registry.assignments import AssignedModel, Assignment, encode_assignment
from registry.drains import DrainRecord, encode_drain
from registry.etcd import EtcdClient, EtcdConfig
from registry.found import Found, FoundModel, encode_found
from registry.keys import (
    AssignmentKey,
    DiskKey,
    DrainKey,
    InstanceKey,
    Key,
    Keyspace,
    LeaderKey,
    PolicyKey,
    ReadyKey,
    RolloutKey,
    TrafficKey,
)
from registry.leaders import LeaderRecord, encode_leader
from registry.plane_traffic import VersionTotals
from registry.policy.read import read_policy
from registry.policy.stored import StoredPolicy, encode_stored
from registry.records import (
    Condition,
    InstanceRecord,
    InstanceState,
    Proof,
    ReadyRecord,
    ReadyState,
    Servable,
    ServableState,
    encode_instance,
    encode_ready,
)
from registry.rollouts import Phase, RolloutRecord, encode_rollout
from registry.traffic import TrafficRecord, encode_traffic
from tests.support.etcd import Etcd
from tests.support.processes import free_port
from tests.support.waiting import eventually

KEYS = Keyspace()
AT = 1_800_000_000.0
MIB = 1 << 20
CANARY = {
    "strategy": "canary",
    "steps": [{"percent": 5, "requests": 500}, {"percent": 50}],
    "gates": {"latency": {}, "difference": {}},
}


def document(name: str = "digits", **spec: Any) -> dict[str, Any]:
    whole = {"basePath": "/models/digits", "rollout": CANARY, **spec}
    return {"apiVersion": "modelplane/v1", "kind": "Model", "metadata": {"name": name}, "spec": whole}


def instance(*servables: Servable, **more: Any) -> bytes:
    given = {"managed": True, "labels": {"gpu": "a100"}, "state": InstanceState.SERVING, **more}
    return encode_instance(InstanceRecord("127.0.0.1", 8500, servables=servables, **given))


def held(version: int, state: ServableState = ServableState.AVAILABLE, **more: Any) -> Servable:
    return Servable("digits", version, state, **more)


def ready(state: ReadyState = ReadyState.READY) -> bytes:
    return encode_ready(ReadyRecord(state, "127.0.0.1", 8500, several_versions=True))


def disk(*versions: int, error: str = "") -> bytes:
    sizes = dict.fromkeys(versions, 100 * MIB)
    return encode_found(Found({"digits": FoundModel("/models/digits", sizes, error)}))


def assigned(*versions: int) -> bytes:
    return encode_assignment(Assignment({"digits": AssignedModel("/models/digits", versions)}))


ROLLOUT = RolloutRecord(
    Phase.STEPPING, 3, 4, 1, 2, AT, "step 1 of 2: 5 % to version 4", 7, refused=(2,), base={"source": "a"}
)
BAD = held(4, ServableState.END, error="DATA_LOSS: Can't parse /models/digits/4/saved_model.pb as binary proto")
FLEET: dict[Key, bytes] = {
    PolicyKey("digits"): encode_stored(
        StoredPolicy(document(instances={"selector": {"gpu": "a100"}}, labels={"canary": 4}), 7, AT, "ann@desk", "new")
    ),
    LeaderKey(): encode_leader(LeaderRecord("plane-0", AT)),
    TrafficKey("digits"): encode_traffic(TrafficRecord({3: 95, 4: 5}, {"canary": 4}, compare=0.05, generation=7)),
    RolloutKey("digits"): encode_rollout(ROLLOUT),
    InstanceKey("answers"): instance(held(3, proof=Proof.PROVED), held(4, proof=Proof.PROVED)),
    InstanceKey("broken"): instance(held(3), BAD),
    InstanceKey("drained"): instance(held(3), held(4)),
    InstanceKey("empty"): instance(),
    InstanceKey("full"): instance(held(3), memory=200 * MIB),
    InstanceKey("labelled"): instance(labels={"gpu": "v100"}),
    InstanceKey("loads"): instance(held(3), held(4, ServableState.LOADING)),
    InstanceKey("mute"): instance(held(3), held(4, proof=Proof.FAILED, proof_detail="INTERNAL: no kernel")),
    InstanceKey("next"): instance(held(3)),
    InstanceKey("observed"): instance(managed=False),
    InstanceKey("owned"): instance(conditions=(Condition("OwnedByServer", "model digits: it is its own", "digits"),)),
    InstanceKey("silent"): instance(state=InstanceState.UNREACHABLE, detail="connection refused"),
    DrainKey("drained"): encode_drain(DrainRecord(by="ann@desk", since="2027-01-15T08:00:00Z")),
    **{ReadyKey("digits", 3, name): ready() for name in ("answers", "broken", "full", "loads", "mute", "next")},
    ReadyKey("digits", 4, "answers"): ready(),
    ReadyKey("digits", 4, "drained"): ready(ReadyState.DRAINING),
    ReadyKey("digits", 4, "loads"): ready(ReadyState.LOADING),
    **{AssignmentKey(name): assigned(3, 4) for name in ("answers", "broken", "drained", "loads", "lost", "mute")},
    **{AssignmentKey(name): assigned(3) for name in ("full", "next")},
    **{
        DiskKey(name): disk(3, 4) for name in ("answers", "broken", "drained", "full", "loads", "mute", "next", "owned")
    },
    DiskKey("empty"): disk(3),
}

GOLDEN = """\
POLICY     generation 7, by ann@desk, 2027-01-15T08:00:00Z, 'new'
           versions: latest 1, under /models/digits, on all of gpu=a100;
             traffic: latest; canary 5% 50%
DISK       4 on 8, 3 on 9 of 12 instances
WANTED     4
LEADER     plane-0
ROLLOUT    stepping 1/2 3 -> 4: step 1 of 2: 5 % to version 4
INSTANCES  1 of 13 are used for version 4
           answers: ready
           broken: failed: it could not be loaded: DATA_LOSS: Can't parse
             /models/digits/4/saved_model.pb as binary proto
           drained: drained: all of it, by ann@desk since 2027-01-15T08:00:00Z;
             take it back with `modelplane undrain drained`
           empty: left out: version 4 is not under /models/digits there, but 3
           full: left out: no room: it takes about 120 MiB, and 80 MiB of 200
             MiB are free
           labelled: left out: the selector wants label gpu=a100, which is
             'v100'
           loads: loading
           lost: lease lost: its monitor has gone, or can't reach etcd; after a
             while its models are placed elsewhere
           mute: failed: it is loaded, but does not answer: INTERNAL: no kernel
           next: waiting: assigned are 3 so far; 25% of the instances may load
             at a time
           observed: left out: not managed: its monitor runs without --manage
           owned: left out: OwnedByServer: model digits: it is its own
           silent: unreachable: connection refused
TRAFFIC    as resolved from generation 7 of the policy
           requests that name no version: 95 % to version 3, 5 % to version 4
CLUSTERS   no control plane answers; Envoys keep what they have
ANSWER     a request for digits@4 is answered with version 4 by answers
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    server = Etcd(tmp_path_factory.mktemp("etcd"))
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def etcd(server: Etcd) -> Etcd:
    """The same for all tests of this file; empty."""
    server.delete_all("")
    return server


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def mp(etcd: Etcd, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("MODELPLANE_ETCD", etcd.endpoint)

    def run(*argv: str) -> tuple[int, str, str]:
        code = cli.main(argv)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def write(etcd: Etcd, entries: Mapping[Key, bytes]) -> None:
    async def put() -> None:
        async with EtcdClient(EtcdConfig((etcd.endpoint,))) as client:
            for key, value in entries.items():
                await client.put(KEYS.make(key), value)

    asyncio.run(put())


def test_every_instance_has_its_reason(mp: Run, etcd: Etcd) -> None:
    write(etcd, FLEET)
    code, out, _ = mp("why", "digits@4")
    assert out == GOLDEN
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80


def test_an_instance_whose_copy_went_elsewhere(mp: Run, etcd: Etcd) -> None:
    stored = StoredPolicy(document(instances={"replicas": 1}), 7, AT)
    rollout = RolloutRecord(Phase.DONE, None, 4, generation=7, tried={"moved": (4,)})
    policy: dict[Key, bytes] = {
        PolicyKey("digits"): encode_stored(stored),
        RolloutKey("digits"): encode_rollout(rollout),
    }
    write(etcd, {**policy, InstanceKey("moved"): instance(), DiskKey("moved"): disk(4)})
    _, out, _ = mp("why", "digits@4")
    told = (
        "moved: left out: it could not be loaded there, so its copy went elsewhere until the policy or version changes"
    )
    assert told in " ".join(out.split())


def test_a_model_a_version_and_a_label_and_what_does_not_answer(mp: Run, etcd: Etcd) -> None:
    write(etcd, FLEET)
    code, out, _ = mp("why", "digits")
    assert code == 0
    assert "a request for digits is answered with version 3 or 4 by answers,\n             broken, full" in out
    code, out, _ = mp("why", "digits:canary")
    assert code == 0
    assert "LABEL      canary is version 4; the routers say so to the servers" in out
    code, out, _ = mp("why", "digits:stable")
    assert code == 1
    assert "LABEL      the policy does not name stable" in out
    code, out, _ = mp("why", "digits@2")
    assert code == 1
    assert "version 2 is not among them: a canary took it back" in out
    assert "NOT_FOUND: no instance has version 2 of model digits" in out
    code, out, err = mp("why", "digit")
    assert (code, out) == (1, "")
    assert "did you mean digits?" in err


def test_nobody_leads_and_that_is_said(mp: Run, etcd: Etcd) -> None:
    write(etcd, {key: value for key, value in FLEET.items() if key != LeaderKey()})
    out = mp("why", "digits")[1]
    assert "LEADER     no control plane leads: what was decided last holds" in out


def test_machines_get_all_of_it(mp: Run, etcd: Etcd) -> None:
    write(etcd, FLEET)
    found = json.loads(mp("why", "digits@4", "-o", "json")[1])
    assert (found["model"], found["version"], found["answered"]) == ("digits", 4, True)
    assert {one["instance"]: one["state"] for one in found["instances"]}["loads"] == "loading"
    assert [step["step"] for step in found["steps"]][:2] == ["policy", "disk"]


def test_a_model_without_a_policy_and_one_whose_policy_is_nonsense(mp: Run, etcd: Etcd) -> None:
    write(etcd, {InstanceKey("one"): instance(held(3)), ReadyKey("digits", 3, "one"): ready()})
    code, out, _ = mp("why", "digits")
    assert code == 0
    assert "POLICY     none: modelplane neither loads nor unloads it" in out
    assert "requests that name no version get version 3" in out
    write(etcd, {PolicyKey("digits"): b"{}"})
    code, out, _ = mp("why", "digits")
    assert code == 0
    assert "it can't be read, so it counts as none" in out


def test_records_of_the_leader_that_somebody_made_unreadable(mp: Run, etcd: Etcd) -> None:
    write(etcd, FLEET)
    assert "UNREADABLE" not in mp("why", "digits@4")[1]
    write(etcd, {TrafficKey("digits"): b"[]", AssignmentKey("loads"): b"\xff", RolloutKey("other"): b"{}"})
    out = mp("why", "digits@4")[1]
    assert "UNREADABLE" in out
    assert KEYS.make(TrafficKey("digits")) in out
    assert KEYS.make(AssignmentKey("loads")) in out
    assert KEYS.make(RolloutKey("other")) not in out


async def test_clusters_are_told_by_a_real_control_plane(etcd: Etcd, capsys: pytest.CaptureFixture[str]) -> None:
    """Waits for the control plane to have read the registry and to have said so there."""
    reach = EtcdConfig((etcd.endpoint,))
    async with EtcdClient(reach) as client:
        for key, value in FLEET.items():
            await client.put(KEYS.make(key), value)
    listen = {"xds_listen": f"127.0.0.1:{free_port()}", "http_listen": f"127.0.0.1:{free_port()}"}
    plane = ControlPlane(ControlPlaneConfig(reach, replica="plane-0", empty_registry_grace=0.0, **listen))
    running = asyncio.create_task(plane.run())

    async def told() -> str:
        capsys.readouterr()
        code = await why._why(FleetConfig(etcd=reach), PlaneConfig(), "digits@4", "text")
        out = capsys.readouterr().out
        assert "CLUSTERS   digits: " in out
        assert code == 0
        return out

    try:
        out = await eventually(told, "the control plane to tell of its clusters")
        assert "           digits@4: 1 draining, 1 healthy\n" in out
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def stepping() -> RolloutRecord:
    """As the canary's own machine leaves it after some requests."""
    policy = read_policy(document())
    loading = RolloutRecord(Phase.LOADING, 3, 4, generation=7)
    record = step_canary(policy, loading, {3: 2, 4: 2}, 2, {}, AT, "a").rollout
    latency = (0,) * 20 + (40,)
    totals = {
        3: VersionTotals(1900, 2, 1900, 2, (0,) * 20 + (1900,)),
        4: VersionTotals(40, 0, 40, 0, latency, compared=30, differed=1, difference="y[0] is 2 instead of 1"),
    }
    return step_canary(policy, record, {3: 2, 4: 2}, 2, totals, AT + 9, "a").rollout


STATUS = """\
digits: canary 5% 50%: stepping 1/2 3 -> 4
  since 2027-01-15 08:00:00 UTC
  step 1 of 2: 5 % to version 4; waits: 40 of 500 requests; gates that are not
  sure yet (errors, p99, different)
  it stands still:
  no control plane is registered; start one: `modelplane control-plane`

VERSION  TRAFFIC  READY  REQUESTS  ERRORS  NOT OK      P99    DIFFERED
3        95%      6/7    1,900     2       2 of 1,900  10 ms  -
4        5%       1/5    40        0       0 of 40     10 ms  1 of 30

NOT READY
  version 4 on broken: DATA_LOSS: Can't parse /models/digits/4/saved_model.pb as
    binary proto
  version 4 on mute: it is AVAILABLE, but doesn't answer a Predict: INTERNAL: no
    kernel

GATES
  errors: 0 of 40 requests; judged from 50
  not OK: 0 of 40 observed answers; judged from 50
  p99: 10 ms of 40 observed answers, where at most 20 ms may be; judged from 50
  different: 1 of 30 compared answers; judged from 50
"""


def test_rollout_status_tells_what_was_counted_and_ends_with_a_code_for_scripts(mp: Run, etcd: Etcd) -> None:
    write(etcd, {**FLEET, RolloutKey("digits"): encode_rollout(stepping())})
    code, out, _ = mp("rollout", "status", "digits")
    assert out == STATUS
    assert code == 4
    found = json.loads(mp("rollout", "status", "digits", "-o", "json")[1])
    assert (found["phase"], found["versions"]["4"]["step"]["requests"]) == ("STEPPING", 40)
    for phase, ends in ((Phase.DONE, 0), (Phase.ROLLED_BACK, 1), (Phase.FAILED, 1)):
        write(etcd, {RolloutKey("digits"): encode_rollout(RolloutRecord(phase, 3, 4, generation=7, refused=(4,)))})
        code, out, _ = mp("rollout", "status", "digits", "--wait")
        assert code == ends
        assert "Taken back, and not tried again before the policy changes: version 4." in out
    write(etcd, {RolloutKey("digits"): encode_rollout(RolloutRecord(Phase.DONE, 3, 4, generation=6))})
    assert mp("rollout", "status", "digits")[0] == 4
    code, _, err = mp("rollout", "status", "digits", "--wait", "--deadline", "0.3")
    assert (code, err) == (1, "modelplane rollout status: not done after 0.3 s\n")
    code, _, err = mp("rollout", "status", "other")
    assert code == 1
    assert "model 'other' has no policy" in err


async def test_rollout_status_waits_for_the_end(etcd: Etcd, capsys: pytest.CaptureFixture[str]) -> None:
    reach = EtcdConfig((etcd.endpoint,))
    said = ""

    def first() -> str:
        nonlocal said
        said += capsys.readouterr().out
        return said

    async with EtcdClient(reach) as client:
        for key, value in FLEET.items():
            await client.put(KEYS.make(key), value)
        config = rollout_status.RolloutStatusConfig(wait=True, deadline=60.0)
        waiting = asyncio.create_task(rollout_status._wait(FleetConfig(etcd=reach), config, "digits"))
        await eventually(first, "the command to say how far it is")
        done = RolloutRecord(Phase.DONE, 3, 4, generation=7, text="version 4 answers")
        await client.put(KEYS.make(RolloutKey("digits")), encode_rollout(done))
        assert await waiting == 0
    said += capsys.readouterr().out
    assert [line for line in said.splitlines() if line.startswith("digits: canary")][:2] == [
        "digits: canary 5% 50%: stepping 1/2 3 -> 4",
        "digits: canary 5% 50%: done 3 -> 4",
    ]
