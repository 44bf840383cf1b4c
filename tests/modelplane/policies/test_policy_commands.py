"""The commands that operate models, against a real etcd."""

from __future__ import annotations

import asyncio
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modelplane import cli
from modelplane.access import FleetConfig
from modelplane.commands.completion import run as print_completion
from modelplane.errors import ConflictError
from modelplane.listing import camel_case
from modelplane.policies.documents import read_documents
from modelplane.policies.store import HISTORY, Change, Done, policy_store
from registry.assignments import AssignedModel, Assignment, encode_assignment
from registry.etcd import EtcdClient, EtcdConfig
from registry.events import Event, encode_event, event_id
from registry.found import Found, FoundModel, encode_found
from registry.keys import (
    AssignmentKey,
    DiskKey,
    EventKey,
    HistoryKey,
    InstanceKey,
    Key,
    Keyspace,
    LoadKey,
    PlaneKey,
    PolicyKey,
    ReadyKey,
    RolloutKey,
    TrafficKey,
)
from registry.loads import LoadRecord, encode_load
from registry.policy.stored import decode_stored, read_stored
from registry.records import (
    Condition,
    InstanceRecord,
    PlaneRecord,
    ReadyRecord,
    ReadyState,
    Servable,
    ServableState,
    encode_instance,
    encode_plane,
    encode_ready,
)
from registry.rollouts import Phase, RolloutRecord, encode_rollout
from registry.traffic import TrafficRecord, encode_traffic
from tests.support.etcd import Etcd

KEYS = Keyspace()
EXAMPLES = Path(__file__).parents[3] / "examples" / "policies"
ODD = "ünï/co@de:x y%"


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


class Ran:
    """A command's end."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def mp(etcd: Etcd, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """`modelplane …` in this process; `text`: its standard input."""
    monkeypatch.setenv("MODELPLANE_ETCD", etcd.endpoint)

    def run(*argv: str, text: str = "") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        code = cli.main(argv)
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    return run


def policy(name: str = "digits", spec: str = "{basePath: /models/digits}") -> str:
    return f"apiVersion: modelplane/v1\nkind: Model\nmetadata: {{name: {json.dumps(name)}}}\nspec: {spec}\n"


def everything(etcd: Etcd) -> str:
    return etcd.ctl("get", "--prefix", "", "--keys-only")


def held(etcd: Etcd, model: str = "digits") -> Any:
    raw = etcd.ctl("get", KEYS.make(PolicyKey(model)), "--print-value-only")
    return decode_stored(raw.encode()) if raw.strip() else None


def test_a_policy_from_its_first_to_its_last_day(mp: Callable[..., Ran], etcd: Etcd) -> None:
    first = mp("apply", "-f", "-", "--message", "first", text=policy())
    assert (first.code, first.out) == (0, "model digits: created, generation 1\n")
    assert mp("apply", "-f", "-", text=policy()).out == "model digits: unchanged, generation 1\n"
    assert mp("label", "digits", "stable=3", "canary=4").out == "model digits: configured, generation 2\n"
    assert mp("label", "digits", "canary-", "--message", "no need").code == 0
    assert mp("traffic", "digits", "3=90", "4=10").code == 0
    assert mp("traffic", "digits", "latest").code == 0
    assert mp("rollout", "pause", "digits").code == 0
    assert mp("rollout", "resume", "digits").code == 0
    assert held(etcd).document["spec"] == {
        "basePath": "/models/digits",
        "labels": {"stable": 3},
        "traffic": {"follow": "latest"},
    }
    assert mp("rollout", "undo", "digits", "--to-generation", "4").code == 0
    stored = held(etcd)
    assert (stored.generation, stored.document["spec"]["traffic"]) == (8, {"weights": {"3": 90, "4": 10}})
    history = mp("rollout", "history", "digits").out.splitlines()
    assert [line.split()[0] for line in history] == ["GENERATION", *map(str, range(1, 9))]
    assert (history[1].split()[-1], history[3].split()[-3:]) == ("first", ["labels", "no", "need"])
    assert mp("delete", "model", "digits", "--message", "gone").out == "model digits: deleted, generation 8\n"
    assert mp("delete", "model", "digits").code == 1
    assert held(etcd) is None
    assert mp("rollout", "undo", "digits").out.startswith(
        "model digits: created, generation 9\nas it was in generation 8, "
    )
    events = [json.loads(line) for line in mp("events", "digits", "-o", "json").out.splitlines()]
    assert [event["kind"] for event in events] == ["PolicyApplied"] * 8 + ["PolicyDeleted", "PolicyApplied"]
    assert events[-2]["text"] == "generation 8 deleted: by `delete` (gone)"
    assert "@" in events[0]["by"]
    assert mp("events", "other").out == "Nothing happened in the last 24 hours.\n"


def test_another_base_path_is_refused_while_the_model_is_loaded(mp: Callable[..., Ran], etcd: Etcd) -> None:
    """With the mend, by every command that would change it; and not where nothing of it is assigned."""
    other = policy(spec="{basePath: /other}")
    assert mp("apply", "-f", "-", text=policy()).code == 0
    assert mp("apply", "-f", "-", text=other).code == 0
    assigned = encode_assignment(Assignment({"digits": AssignedModel("/other", (1,))}))
    for name in ("i0", "i1"):
        etcd.ctl("put", KEYS.make(AssignmentKey(name)), assigned.decode())
    before = held(etcd)
    for argv, text in ((("apply", "-f", "-"), policy()), (("apply", "--dry-run", "-f", "-"), policy())):
        ran = mp(*argv, text=text)
        assert (ran.code, ran.out) == (1, "")
        assert "spec.basePath can't become '/models/digits': i0, i1 hold it from '/other'" in ran.err
        assert "`modelplane delete model digits` first" in ran.err
    assert mp("rollout", "undo", "digits").code == 1
    assert held(etcd) == before
    assert mp("label", "digits", "stable=1").code == 0
    assert mp("delete", "model", "digits").code == 0
    # What was deleted is loaded until the leader has let go of it.
    assert "still assigned it from '/other'; try again" in mp("apply", "-f", "-", text=policy()).err
    for name in ("i0", "i1"):
        etcd.ctl("put", KEYS.make(AssignmentKey(name)), encode_assignment(Assignment()).decode())
    assert mp("apply", "-f", "-", text=policy()).code == 0


def test_dry_run_and_diff_write_nothing(mp: Callable[..., Ran], etcd: Etcd) -> None:
    dry = mp("apply", "-f", "-", "--dry-run", text=policy())
    assert (dry.code, dry.out) == (0, "model digits: created, generation 1 (dry run)\n")
    assert mp("apply", "-f", "-", "--diff", text=policy()).code == 5
    assert everything(etcd) == ""
    mp("apply", "-f", "-", text=policy())
    before = everything(etcd)
    same, other = (mp("apply", "-f", "-", "--diff", text=text) for text in (policy(), policy(spec="{timeout: 2s}")))
    assert (same.code, same.out) == (0, "")
    assert other.code == 5
    assert [line for line in other.out.splitlines()[2:] if line[0] in "+-"] == [
        "-  basePath: /models/digits",
        "+  timeout: 2s",
    ]
    assert everything(etcd) == before


def test_one_bad_file_of_a_folder_stops_all_of_it(mp: Callable[..., Ran], etcd: Etcd, tmp_path: Path) -> None:
    for name, text in {
        "a.yaml": policy("a"),
        "b.yaml": f"{policy('b')}---\n# two\n{policy('c', '{timeout: 2}')}",
        "c.json": '{"apiVersion": "modelplane/v1",\n "kind": "Modell", "metadata": {"name": "d"}}',
        "d.yml": policy("a"),
        "e.txt": "not read",
    }.items():
        (tmp_path / name).write_text(text)
    ran = mp("apply", "-f", str(tmp_path))
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.splitlines() == [
        "modelplane apply: error: nothing was written, for there are 3 problems",
        f"  {tmp_path}/b.yaml:10: spec.timeout: 2 is not allowed; it must be a duration from 1ms to 24h such as 500ms, "
        "2s or 5m; it needs a unit: ms, s, m or h",
        f'  {tmp_path}/c.json:2: kind: "Modell" is not allowed; it must be Model',
        f"  {tmp_path}/d.yml:1: model 'a' is there twice; it stands in {tmp_path}/a.yaml:1 too",
    ]
    assert everything(etcd) == ""
    for name in ("b.yaml", "c.json", "d.yml"):
        (tmp_path / name).unlink()
    assert mp("apply", "-f", str(tmp_path)).out == "model a: created, generation 1\n"


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["apply"], 2, "say what to apply"),
        (["apply", "-f", "/nowhere.yaml"], 1, "/nowhere.yaml: No such file or directory; nothing was written"),
        (["apply", "-f", "-"], 1, "there is no policy in -"),
        (["apply", "-f", "-", "--diff", "--wait"], 2, "nothing is written with --dry-run and --diff"),
        (["label", "digits"], 2, "say which labels"),
        (["label", "digits", "canary"], 2, "'canary': write LABEL=VERSION, or LABEL- to take a label away"),
        (["label", "digits", "a=1", "a=2"], 2, "a label is there twice"),
        (["label", "digits", "a=1"], 1, "there is no policy of model 'digits'"),
        (["traffic", "digits", "x=1"], 2, "'x=1': write VERSION=PARTS such as 3=90, or `latest` alone"),
        (["traffic"], 2, "say which model: `modelplane traffic MODEL VERSION=PARTS ...|latest`"),
        (["rollout"], 2, "say what to do; there are status, history, undo, pause, resume"),
        (["rollout", "histroy"], 2, "no verb 'histroy'; did you mean history?"),
        (["rollout", "history", "digits"], 1, "model 'digits' has no policy and never had one"),
        (["rollout", "history", "digits", "-o", "wide"], 2, "modelplane rollout history: error: "),
        (["rollout", "undo", "digits"], 1, "model 'digits' has no earlier policy"),
        (["delete", "digits"], 2, "'digits' can't be deleted"),
        (["get", "models", "digits"], 1, "the registry knows no model 'digits'"),
        (["get", "envoys", "x"], 2, "get envoys takes no name"),
        (["completion", "tcsh"], 2, "no script for 'tcsh'; there are bash, zsh, fish"),
    ],
)
def test_what_a_user_can_get_wrong(mp: Callable[..., Ran], argv: list[str], code: int, said: str) -> None:
    ran = mp(*argv)
    assert (ran.code, ran.out) == (code, "")
    assert said in ran.err
    assert ran.err.count("\n") == 1


def test_a_generation_that_is_no_longer_there_is_a_conflict(mp: Callable[..., Ran], etcd: Etcd) -> None:
    assert mp("apply", "-f", "-", "--if-generation", "1", text=policy()).code == 3
    assert mp("apply", "-f", "-", "--if-generation", "0", text=policy()).code == 0
    assert mp("label", "digits", "a=1", "--if-generation", "1").code == 0
    for argv in (["label", "digits", "b=1"], ["traffic", "digits", "3=1"], ["delete", "model", "digits"]):
        ran = mp(*argv, "--if-generation", "1")
        assert ran.code == 3
        assert "the policy of 'digits' is at generation 2, by " in ran.err
    assert held(etcd).generation == 2


async def test_fifty_apply_at_once(etcd: Etcd) -> None:
    """One order: every generation is there once, each with another document, and nobody's is lost."""
    fleet = FleetConfig(etcd=EtcdConfig((etcd.endpoint,), timeout=60.0))

    async def apply(number: int, model: str) -> int:
        (document,) = read_documents(policy(model, f"{{timeout: {number + 1}s}}"))
        async with policy_store(fleet, by=f"operator-{number}") as store:
            result = await store.change(model, lambda held: Change(document.value, "applied"))
        assert result.done in (Done.CREATED, Done.CONFIGURED)
        return result.generation

    generations = await asyncio.gather(*(apply(number, "digits") for number in range(50)))
    assert sorted(generations) == list(range(1, 51))
    async with EtcdClient(fleet.etcd) as client:
        listing = await client.list(KEYS.history)
        present = await client.get(KEYS.make(PolicyKey("digits")))
    assert present is not None
    last, _ = read_stored(present.value, "digits")
    kept = {key.generation: entry for entry in listing.entries if isinstance(key := KEYS.parse(entry.key), HistoryKey)}
    assert set(kept) == set(range(50 - HISTORY, 50))
    operators = {generation: f"operator-{number}" for number, generation in enumerate(generations)}
    assert last.by == operators[50]
    for generation, entry in kept.items():
        stored, read = read_stored(entry.value, "digits")
        assert (stored.generation, stored.by) == (generation, operators[generation])
        assert stored.by == f"operator-{int(read.timeout or 0) - 1}"


async def test_changes_made_from_what_was_read_add_up_or_conflict(etcd: Etcd) -> None:
    """Labels set at once are all there; of those who undo at once one does, or each undoes what it has seen."""
    fleet = FleetConfig(etcd=EtcdConfig((etcd.endpoint,), timeout=60.0))
    (document,) = read_documents(policy())

    async def add(number: int) -> None:
        def decide(held: Any) -> Change:
            spec = held.needed().document["spec"]
            labels = {**spec.get("labels", {}), f"label-{number}": number}
            return Change({**held.stored.document, "spec": {**spec, "labels": labels}}, "label")

        async with policy_store(fleet) as store:
            await store.change("digits", decide)

    async with policy_store(fleet) as store:
        await store.change("digits", lambda held: Change(document.value, "applied"))
        await asyncio.gather(*map(add, range(20)))
        assert (await store.read("digits")).policy.labels == {f"label-{number}": number for number in range(20)}  # type: ignore[union-attr]

        def slow(held: Any) -> Change:
            # Somebody else is faster than the one who looked.
            etcd.ctl("put", KEYS.make(PolicyKey("digits")), text=held.raw.decode())
            return Change(None, "deleted")

        with pytest.raises(ConflictError, match="the policy of 'digits' is at generation 21"):
            await store.change("digits", slow, retry=False)
        assert (await store.read("digits")).generation == 21


async def test_one_that_is_deleted_in_between_gets_no_generation_twice(etcd: Etcd) -> None:
    """Created and deleted by somebody else after the look that found none."""
    fleet = FleetConfig(etcd=EtcdConfig((etcd.endpoint,)))
    (document,) = read_documents(policy())
    looks = 0
    async with policy_store(fleet) as store, policy_store(fleet) as other:

        async def meanwhile() -> None:
            await other.change("digits", lambda held: Change(document.value, "applied"))
            await other.change("digits", lambda held: Change(None, "deleted"))

        read = store.read

        async def late(model: str) -> Any:
            nonlocal looks
            seen = await read(model)
            looks += 1
            if looks == 1:
                await meanwhile()
            return seen

        store.read = late  # type: ignore[method-assign]
        result = await store.change("digits", lambda held: Change(document.value, "applied"))
    assert (looks, result.generation) == (2, 2)


def test_what_can_not_be_read_is_told_and_replaced(mp: Callable[..., Ran], etcd: Etcd) -> None:
    etcd.ctl("put", KEYS.make(PolicyKey("bad")), text='{"generation":7,"document":{"spec":{"timeout":2}}}')
    etcd.ctl("put", KEYS.make(PolicyKey("worse")), text="nonsense")
    table = mp("get", "models").out
    assert [line.split()[:3] for line in table.splitlines()[1:3]] == [
        ["bad", "7", "unreadable"],
        ["worse", "-", "unreadable"],
    ]
    assert "worse: its policy can't be read, so it counts as none: not JSON" in table
    documents = json.loads(mp("get", "models", "-o", "json").out)["models"]
    assert all(document["error"] for document in documents)
    assert read_documents(mp("get", "models", "-o", "yaml").out) == []
    assert "unreadable  it counts as none: " in mp("describe", "model", "bad").out
    refused = mp("traffic", "bad", "3=1")
    assert refused.code == 1
    assert "can't be read: apiVersion: it is missing" in refused.err
    assert mp("apply", "-f", "-", text=policy("bad")).out == "model bad: configured, generation 8\n"
    assert mp("apply", "-f", "-", text=policy("worse")).out == "model worse: configured, generation 2\n"
    history = mp("rollout", "history", "worse")
    assert history.code == 0
    assert "can't be read: not JSON" in history.out
    assert mp("rollout", "undo", "worse").code == 1


def test_odd_names_work_everywhere(mp: Callable[..., Ran], etcd: Etcd) -> None:
    assert mp("apply", "-f", "-", text=policy(ODD)).out == f"model {ODD}: created, generation 1\n"
    assert mp("label", ODD, "käse/1=3").code == 0
    assert mp("traffic", ODD, "3=1").code == 0
    assert mp("rollout", "undo", ODD).code == 0
    assert held(etcd, ODD).generation == 4
    assert mp("rollout", "history", ODD).code == 0
    assert mp("get", "models", ODD, "-o", "yaml").out.count("käse/1: 3") == 1
    assert f"MODEL {ODD}\n" in mp("describe", "model", ODD).out
    again = mp("apply", "-f", "-", text=mp("get", "models", "-o", "yaml").out)
    assert again.out == f"model {ODD}: unchanged, generation 4\n"
    assert mp("delete", "model", ODD).code == 0


def test_the_examples_are_applied_and_shown_in_eighty_columns(mp: Callable[..., Ran]) -> None:
    assert mp("apply", "-f", str(EXAMPLES)).code == 0
    assert mp("apply", "-f", str(EXAMPLES)).out.count("unchanged") == len(list(EXAMPLES.iterdir()))
    table = mp("get", "models").out.splitlines()
    assert len(table) == 1 + len(list(EXAMPLES.iterdir()))
    assert max(map(len, table)) <= 80
    assert mp("get", "models", "-o", "wide").code == 0
    assert "timeout 2s, retries 2, balancing roundRobin" in mp("describe", "model", "legacy/scores").out


def test_waiting_ends_as_the_rollout_does(mp: Callable[..., Ran], etcd: Etcd) -> None:
    def rollout(phase: Phase, generation: int, text: str = "") -> None:
        record = RolloutRecord(phase, 3, 4, text=text, generation=generation)
        etcd.ctl("put", KEYS.make(RolloutKey("digits")), text=encode_rollout(record).decode())

    rollout(Phase.DONE, 1)
    done = mp("apply", "-f", "-", "--wait", text=policy())
    assert (done.code, done.err) == (0, "model digits: done 3 -> 4\n")
    old = mp("apply", "-f", "-", "--wait", "--deadline", "0.2", text=policy(spec="{basePath: /other}"))
    assert old.code == 1
    nobody = "no control plane is registered; start one: `modelplane control-plane`"
    assert old.err.splitlines()[0] == f"model digits: {nobody}"
    assert "not ended after 0.2 s" in old.err
    assert (mp("rollout", "status", "digits").out, mp("rollout", "status", "digits").code) == (f"digits: {nobody}\n", 4)
    assert json.loads(mp("rollout", "status", "digits", "-o", "json").out)["text"] == nobody
    assert old.err.splitlines()[-1].endswith("it will carry out what was applied")
    rollout(Phase.LOADING, 2, "0 of 2")
    still = mp("apply", "-f", "-", "--wait", "--deadline", "0.2", text=policy(spec="{basePath: /other}"))
    assert still.err.splitlines()[0] == f"model digits: loading 3 -> 4: 0 of 2; it stands still: {nobody}"
    assert f"  it stands still:\n  {nobody}\n" in mp("rollout", "status", "digits").out
    etcd.ctl("put", KEYS.make(PlaneKey("p")), text=encode_plane(PlaneRecord(1)).decode())
    assert "stands still" not in mp("rollout", "status", "digits").out
    rollout(Phase.DONE, 1)
    for_leader = mp("apply", "-f", "-", "--wait", "--deadline", "0.2", text=policy(spec="{basePath: /other}"))
    assert for_leader.err.splitlines()[0] == "model digits: waits for the leader of the control planes"
    assert "waits for the leader" in mp("rollout", "status", "digits").out
    rollout(Phase.ROLLED_BACK, 2, "7 % errors")
    back = mp("apply", "-f", "-", "--wait", text=policy(spec="{basePath: /other}"))
    assert (back.code, back.err) == (1, "model digits: rolled back 3 -> 4: 7 % errors\n")
    etcd.ctl("put", KEYS.make(TrafficKey("routed")), text=encode_traffic(TrafficRecord({3: 1}, generation=1)).decode())
    assert mp("apply", "-f", "-", "--wait", text=policy("routed", "{timeout: 2s}")).code == 0
    assert [line.split()[-1] for line in mp("get", "models").out.splitlines()] == ["ROLLOUT", "back", "-"]


def test_a_version_that_can_not_be_loaded_is_told_at_once(mp: Callable[..., Ran], etcd: Etcd) -> None:
    """By `rollout status`, while the rollout still tries."""
    mp("apply", "-f", "-", text=policy())
    going_on = RolloutRecord(Phase.LOADING, 3, 4, text="version 4 is ready on 0 of 2 instances", generation=1)
    etcd.ctl("put", KEYS.make(RolloutKey("digits")), text=encode_rollout(going_on).decode())
    broken = Servable(
        "digits", 4, ServableState.END, error="DATA_LOSS: Can't parse /models/digits/4/saved_model.pb as binary proto"
    )
    for name in ("tfs-0", "tfs-1"):
        record = encode_instance(InstanceRecord("127.0.0.1", 8500, servables=(broken,)))
        etcd.ctl("put", KEYS.make(InstanceKey(name)), text=record.decode())
    ran = mp("rollout", "status", "digits")
    assert ran.code == 4
    assert "NOT READY\n  version 4 on tfs-0, tfs-1: DATA_LOSS: Can't parse" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80
    told = json.loads(mp("rollout", "status", "digits", "-o", "json").out)
    assert told["notReady"] == [{"version": 4, "instances": ["tfs-0", "tfs-1"], "reason": broken.error}]
    waited = mp("rollout", "status", "digits", "--wait", "--deadline", "0.3")
    assert f"digits: version 4 on tfs-0, tfs-1: {broken.error}\n" in waited.out


def test_a_version_that_waits_for_its_next_try_is_told_by_its_condition(mp: Callable[..., Ran], etcd: Etcd) -> None:
    mp("apply", "-f", "-", text=policy())
    going_on = RolloutRecord(Phase.LOADING, 3, 4, text="version 4 is ready on 0 of 1 instances", generation=1)
    etcd.ctl("put", KEYS.make(RolloutKey("digits")), text=encode_rollout(going_on).decode())
    conditions = (
        Condition("LoadFailed", "model digits version 4: no variables; tried once", "digits"),
        Condition("LoadFailed", "model digits version 40: another", "digits"),
        Condition("LoadFailed", "model other version 4: another", "other"),
    )
    record = encode_instance(InstanceRecord("127.0.0.1", 8500, conditions=conditions))
    etcd.ctl("put", KEYS.make(InstanceKey("tfs-0")), text=record.decode())
    told = json.loads(mp("rollout", "status", "digits", "-o", "json").out)["notReady"]
    assert told == [{"version": 4, "instances": ["tfs-0"], "reason": "no variables; tried once"}]


def keys_of(value: object) -> Iterator[str]:
    match value:
        case dict():
            yield from value
            for one in value.values():
                yield from keys_of(one)
        case list():
            for one in value:
                yield from keys_of(one)


def test_keys_for_machines_are_spelt_in_one_way(mp: Callable[..., Ran], etcd: Etcd) -> None:
    """As in policies, and as Kubernetes does."""
    mp("apply", "-f", "-", text=policy(spec="{basePath: /models/digits, labels: {stable: 3}}"))
    records: dict[Key, bytes] = {
        RolloutKey("digits"): encode_rollout(RolloutRecord(Phase.LOADING, 3, 4, generation=1)),
        TrafficKey("digits"): encode_traffic(TrafficRecord({3: 1}, {"stable": 3})),
        ReadyKey("digits", 3, "tfs-0"): encode_ready(ReadyRecord(ReadyState.READY, "127.0.0.1", 21000)),
        InstanceKey("tfs-0"): encode_instance(InstanceRecord("127.0.0.1", 8500, labels={"gpu": "a100"})),
        LoadKey("tfs-0"): encode_load(LoadRecord(1.0, 1.0, 1.0, 1.0)),
    }
    for key, value in records.items():
        etcd.ctl("put", KEYS.make(key), text=value.decode())
    found = {thing: json.loads(mp("get", thing, "-o", "json").out) for thing in ("models", "versions", "instances")}
    found["status"] = json.loads(mp("rollout", "status", "digits", "-o", "json").out)
    found["why"] = json.loads(mp("why", "digits", "-o", "json").out)
    assert found["models"]["models"][0]["labels"] == {"stable": 3}
    assert found["instances"]["instances"][0]["labels"] == {"gpu": "a100"}
    assert found["instances"]["instances"][0]["load"]["requestsPerSecond"] == 1.0
    assert (found["status"]["fromVersion"], found["status"]["toVersion"]) == (3, 4)
    assert {key for key in keys_of(found) if "_" in key or key[:1].isupper()} == set()


def test_a_control_planes_page_gets_the_same_keys() -> None:
    page = {"converged_revision": 1, "envoys": [{"node": "a_b", "types": {"CDS": {"last_error": "at cluster_x"}}}]}
    assert camel_case(page) == {
        "convergedRevision": 1,
        "envoys": [{"node": "a_b", "types": {"CDS": {"lastError": "at cluster_x"}}}],
    }


def test_undo_tells_what_it_went_back_to(mp: Callable[..., Ran]) -> None:
    mp("apply", "-f", "-", "-m", "the first", text=policy())
    mp("label", "digits", "stable=3", "--message", "the second")
    undone = mp("rollout", "undo", "digits").out.splitlines()
    assert undone[0] == "model digits: configured, generation 3"
    assert re.fullmatch(r"as it was in generation 1, 20\S+Z by \S+@\S+: the first", undone[1])


def test_status_names_models_that_have_nothing_but_a_policy(mp: Callable[..., Ran]) -> None:
    mp("apply", "-f", "-", text=policy("digits"))
    mp("apply", "-f", "-", text=policy("two words"))
    lines = mp("status").out.splitlines()
    assert lines[1].split(maxsplit=2) == ["digits", "-", "on no instance; see `modelplane why digits`"]
    assert lines[2].endswith("see `modelplane why 'two words'`")
    assert "No models." not in lines


def test_events_fit_the_terminal_and_are_whole_lines_for_a_pipe(
    mp: Callable[..., Ran], etcd: Etcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "version 3 was taken back at step 1 of 2: 37 of 120 requests failed, where 1 of 100 may"
    event = Event(1.8e9, "RolledBack", "digits", version=3, text=text, by="leader p")
    etcd.ctl("put", KEYS.make(EventKey(event_id(event.at, 1))), text=encode_event(event).decode())
    short = Event(1.8e9 + 1, "RolloutDone", "digits", version=3, text="on 3 instances", by="leader p")
    etcd.ctl("put", KEYS.make(EventKey(event_id(short.at, 1))), text=encode_event(short).decode())
    assert len(mp("events").out.splitlines()) == 3
    monkeypatch.setattr("modelplane.commands.events.terminal_width", lambda stream: 80)
    assert mp("events").out == (
        "TIME                  KIND         ABOUT     TEXT\n"
        "2027-01-15T08:00:00Z  RolledBack   digits@3\n"
        "                      version 3 was taken back at step 1 of 2: 37 of 120\n"
        "                      requests failed, where 1 of 100 may\n"
        "2027-01-15T08:00:01Z  RolloutDone  digits@3  on 3 instances\n"
    )
    assert json.loads(mp("events", "-o", "json").out.splitlines()[0])["text"] == text


def test_versions_are_told_with_what_lies_on_disk(mp: Callable[..., Ran], etcd: Etcd) -> None:
    found = Found({"digits": FoundModel("/models/digits", {3: 10, 4: 10})})
    etcd.ctl("put", KEYS.make(DiskKey("tfs-0")), text=encode_found(found).decode())
    ready = ReadyRecord(ReadyState.READY, "127.0.0.1", 21000)
    etcd.ctl("put", KEYS.make(ReadyKey("digits", 3, "tfs-0")), text=encode_ready(ready).decode())
    etcd.ctl("put", KEYS.make(TrafficKey("digits")), text=encode_traffic(TrafficRecord({3: 1}, {"stable": 3})).decode())
    assert [line.split() for line in mp("get", "versions").out.splitlines()[1:]] == [
        ["digits", "4", "-", "-", "0/0", "on", "disk", "only"],
        ["digits", "3", "100%", "stable", "1/1", "ready", "1"],
    ]
    newer, older = json.loads(mp("get", "versions", "digits", "-o", "json").out)["versions"]
    assert (newer["onDisk"], older["instances"], older["labels"]) == (["tfs-0"], {"tfs-0": "ready"}, ["stable"])
    assert mp("get", "versions", "other").code == 1


def test_watching_tells_what_changes(mp: Callable[..., Ran], etcd: Etcd) -> None:
    """Waits for the line of each change."""
    assert mp("apply", "-f", "-", text=policy()).code == 0
    command = [sys.executable, "-m", "modelplane", "get", "models", "-o", "json", "-w"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            assert json.loads(child.stdout.readline())["generation"] == 1
            mp("label", "digits", "stable=3")
            assert json.loads(child.stdout.readline())["generation"] == 2
            mp("delete", "model", "digits")
            assert json.loads(child.stdout.readline())["deleted"] is True
        finally:
            child.kill()


def test_completion_knows_flags_and_names(mp: Callable[..., Ran]) -> None:
    def found(*words: str) -> list[str]:
        return mp("completion", "candidates", "--", *words).out.splitlines()

    mp("apply", "-f", "-", text=policy(ODD) + "---\n" + policy("digits"))
    assert found("la") == ["label"]
    assert found("rollout", "") == ["history", "pause", "resume", "status", "undo"]
    assert found("rollout", "undo", "") == ["digits", ODD]
    assert found("get", "models", "d") == ["digits"]
    assert found("get", "models", "-o", "") == ["json", "table", "wide", "yaml"]
    assert found("apply", "--dr") == ["--dry-run"]
    assert found("apply", "-f", "x") == [":files"]
    assert found("describe", "") == ["model"]
    assert found("label", "--etcd", "127.0.0.1:1", "") == []
    assert found("nonsense", "") == found() == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_in_a_shell(
    shell: str, mp: Callable[..., Ran], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In bash for real; of the others, where they are installed, that they can read the script."""
    script = tmp_path / "completion"
    assert print_completion([shell]) == 0
    script.write_text(capsys.readouterr().out)
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    if shell != "bash":
        assert subprocess.run([shell, "-n", script], timeout=30).returncode == 0
        return
    mp("apply", "-f", "-", text=policy("two words"))
    ask = (
        f'modelplane() {{ {sys.executable} -m modelplane "$@"; }}; source {script}; COMP_WORDS=(modelplane label tw); '
        'COMP_CWORD=2; _modelplane; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("two\\ words\n", "")
