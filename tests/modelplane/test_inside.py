"""`get envoys` and `describe model` as lines, of pages that control planes have told."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest

from modelplane.description import Pages, describe
from modelplane.envoys import age, envoys
from modelplane.errors import UserError
from modelplane.fleet import Holding, Picture, State, Version
from modelplane.lines import Line, Tone, show
from modelplane.lost_leases import lost_leases
from modelplane.planes import Plane, Report, resource_page
from modelplane.policies.view import PolicyView
from modelplane.quarantine import all_quarantined
from registry.keys import Keyspace
from registry.records import Condition, InstanceRecord, PlaneRecord
from registry.traffic import TrafficRecord


def type_of(**changed: Any) -> dict[str, Any]:
    numbers = ("subscribed", "responses", "sent", "removed", "acked", "nacked", "unanswered", "outstanding")
    revisions = dict.fromkeys(("sent_revision", "acked_revision", "nacked_revision"), 0)
    return {"wildcard": False, "refused": [], "last_error": "", **dict.fromkeys(numbers, 0), **revisions, **changed}


def stream(node: str, *, converged: int = 9, **types: dict[str, Any]) -> dict[str, Any]:
    return {
        "node": node,
        "cluster": "edge",
        "peer": "ipv4:10.0.0.7:4321",
        "client": "envoy 1.40.0",
        "view": "envoy",
        "service": "ADS",
        "protocol": "delta",
        "connected_seconds": 75.5,
        "converged_revision": converged,
        "types": types,
    }


def report(name: str, *streams: dict[str, Any], revision: int = 9, converged: int = 9) -> Report:
    page = {"replica": name, "revision": revision, "converged_revision": converged, "envoys": list(streams)}
    return Report(Plane(name, f"{name}:18080"), page)


REFUSED = [{"name": "m@1", "message": "bad lb_policy"}]
REFUSING = stream("edge-b", CDS=type_of(outstanding=3, refused=REFUSED), EDS=type_of(outstanding=2))


def texts(lines: list[Line]) -> list[str]:
    return [line.text for line in lines]


def test_every_envoy_of_every_control_plane() -> None:
    reports = [
        report("plane-1", REFUSING, stream("edge-c", converged=7, LDS=type_of())),
        report("plane-0", stream("edge-a", EDS=type_of(outstanding=0)), stream("edge-d", converged=0, CDS=type_of())),
        Report(Plane("plane-2", "10.0.0.3:18080"), error="connection refused"),
    ]
    lines = envoys(reports)
    assert texts(lines) == [
        "ENVOY   CLIENT        CONTROL PLANE  SINCE  STATE",
        "edge-a  envoy 1.40.0  plane-0        1m     has everything",
        "edge-b  envoy 1.40.0  plane-1        1m     refused CDS 1; pending CDS 2, EDS 2",
        "edge-c  envoy 1.40.0  plane-1        1m     at revision 7 of 9",
        "edge-d  envoy 1.40.0  plane-0        1m     subscribing",
        "",
        "REFUSED",
        "edge-b: CDS m@1: bad lb_policy",
        "",
        "CONTROL PLANES THAT DO NOT ANSWER",
        "plane-2 at 10.0.0.3:18080: connection refused",
    ]
    assert max(map(len, texts(lines))) <= 80
    assert [line.tone for line in lines[1:5]] == [Tone.PLAIN, Tone.BAD, Tone.WAITING, Tone.WAITING]


def test_wide_has_a_line_for_each_type() -> None:
    cds = type_of(
        wildcard=True, sent=5, responses=4, acked=3, nacked=1, outstanding=1, sent_revision=9, acked_revision=8
    )
    lines = texts(envoys([report("plane-0", stream("edge-a", EDS=type_of(subscribed=2), CDS=cds))], wide=True))
    expected = "edge-a envoy 1.40.0 plane-0 1m edge ipv4:10.0.0.7:4321 envoy ADS delta 9 pending CDS 1"
    assert " ".join(lines[1].split()) == expected
    assert " ".join(lines[4].split()) == "edge-a plane-0 CDS * 5 0 4 3 1 0 1 9 8 -"
    assert " ".join(lines[5].split()) == "edge-a plane-0 EDS 2 0 0 0 0 0 0 0 - - -"


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        ([report("plane-0"), report("plane-1")], ["No Envoys are connected to plane-0, plane-1."]),
        (
            [Report(Plane("p", ""), error="too old")],
            ["CONTROL PLANES THAT DO NOT ANSWER", "p: too old"],
        ),
    ],
)
def test_no_envoys(reports: list[Report], expected: list[str]) -> None:
    assert texts(envoys(reports)) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.4, "0s"), (59.9, "59s"), (60, "1m"), (11_100, "3h05m"), (800_000, "9d")]
)
def test_how_long_ago(seconds: float, expected: str) -> None:
    assert age(seconds) == expected


PICTURE = Picture(
    revision=12,
    versions=(
        Version("m", 2, False, {"i-1": Holding(State.FAILED, "no saved_model.pb")}),
        Version("m", 1, True, {"i-0": Holding(State.READY), "i-1": Holding(State.DRAINING)}),
        Version("other", 1, True, {"i-0": Holding(State.READY)}),
    ),
    instances={"i-0": InstanceRecord("10.0.0.1", 8500, 8501), "i-1": InstanceRecord("10.0.0.2", 8500)},
)


def quarantined(**changed: Any) -> dict[str, Any]:
    row = {"view": "envoy", "type": "CDS", "name": "m@1", "model": "m", "version": "bad1", "last_good_version": "good0"}
    return {
        **row,
        "node": "edge-b",
        "peer": "ipv4:10.0.0.7:4321",
        "field": "lb_policy",
        "message": "no such value",
        "since_revision": 8,
        **changed,
    }


def refusals(name: str, *rows: dict[str, Any]) -> Report:
    return Report(Plane(name, f"{name}:1"), {"replica": name, "quarantined": list(rows)})


def endpoint(**changed: str) -> dict[str, Any]:
    return {"endpoint": {}, **changed}


def test_the_head_tells_by_what_shares_a_version_is_drawn() -> None:
    view = PolicyView(Keyspace(), traffic={"m": TrafficRecord({1: 90, 3: 10, 2: 0})})
    said = texts(describe(PICTURE, "m", Pages(), view))[1]
    assert said == "A request that names no version gets version 1 (90%) or 3 (10%)."


def test_all_about_a_model() -> None:
    endpoints = [{"lb_endpoints": [endpoint(), endpoint(), endpoint(health_status="DRAINING")]}]
    clusters = [{"name": "m@1", "version": "c1"}, {"name": "m", "version": "c0"}]
    assignments = [{"name": "m@1", "version": "e1", "resource": {"endpoints": endpoints}}]
    pages = Pages(
        quarantine=[
            Report(
                Plane("a", "a:1"), {"replica": "plane-0", "quarantined": [quarantined(), quarantined(model="other")]}
            ),
            Report(Plane("b", "b:1"), {"replica": "plane-1", "quarantined": [quarantined()]}),
        ],
        envoys=[report("plane-0", REFUSING, converged=7), Report(Plane("plane-1", "b:1"), error="no answer for 5 s")],
        resources={
            "CDS": Report(Plane("a", "a:1"), {"resources": clusters}),
            "EDS": Report(Plane("a", "a:1"), {"resources": assignments}),
        },
    )
    assert texts(describe(PICTURE, "m", pages)) == [
        "MODEL m",
        "A request that names no version gets version 1.",
        "Control plane plane-0, 1 connected: acknowledged up to revision 7 of 9.",
        "",
        "VERSION  SERVED  INSTANCE  STATE     GRPC           REST",
        "2                i-1       failed    10.0.0.2:8500  -",
        "1        yes     i-0       ready     10.0.0.1:8500  10.0.0.1:8501",
        "1        yes     i-1       draining  10.0.0.2:8500  -",
        "",
        "NOT READY",
        "version 2 on i-1: no saved_model.pb",
        "",
        "CLUSTER  CDS VERSION  EDS VERSION  ENDPOINTS",
        "m@1      c1           e1           1 draining, 2 healthy",
        "m        c0           -            none",
        "",
        "QUARANTINED, until its next version",
        "CDS m@1, version bad1",
        "  refused by  edge-b at ipv4:10.0.0.7:4321, revision 8",
        "  field       lb_policy",
        "  message     no such value",
        "  now         every client is sent its last good version, good0",
        "  says        plane-0, plane-1",
        "",
        "REFUSED",
        "edge-b: CDS m@1: bad lb_policy",
        "",
        "CONTROL PLANES THAT DO NOT ANSWER",
        "plane-1 at b:1: no answer for 5 s",
    ]


def test_conditions_of_a_model_and_of_the_instances_that_hold_it() -> None:
    frozen = Condition("OtherModelsFrozen", "new versions are not seen")
    missing = Condition("BasePathMissing", "model late: /late is not there", "late")
    broken = Condition("LoadFailed", "model m: broken", "m")
    instances = {
        "i-0": replace(PICTURE.instances["i-0"], conditions=(missing, frozen, broken)),
        "i-1": replace(PICTURE.instances["i-1"], conditions=(broken,)),
    }
    picture = replace(PICTURE, instances=instances)
    lines = texts(describe(picture, "m", Pages()))
    assert lines[lines.index("CONDITIONS") + 1 :] == [
        "i-0: OtherModelsFrozen: new versions are not seen",
        "i-0, i-1: LoadFailed: model m: broken",
    ]
    # A model of which no server holds a version: the condition is all that there is to tell.
    assert texts(describe(picture, "late", Pages())) == [
        "MODEL late",
        "No version is served: no instance answers for any.",
        "",
        "CONDITIONS",
        "i-0: BasePathMissing: model late: /late is not there",
    ]
    with pytest.raises(UserError, match="knows no model 'none'"):
        describe(picture, "none", Pages())


def test_all_that_is_quarantined() -> None:
    reports = [
        refusals("p", quarantined(), quarantined(model="", type="LDS", name="grpc", last_good_version=None)),
        Report(Plane("q", "q:1"), error="connection refused"),
    ]
    lines = texts(all_quarantined(reports))
    assert [line for line in lines if not line.startswith("  ")] == [
        "QUARANTINED, until its next version",
        "LDS grpc of all models, version bad1",
        "CDS m@1 of model m, version bad1",
        "",
        "CONTROL PLANES THAT DO NOT ANSWER",
        "q at q:1: connection refused",
    ]
    assert texts(all_quarantined([refusals("p")])) == ["Nothing is quarantined."]
    assert texts(all_quarantined(reports[1:]))[0] == "CONTROL PLANES THAT DO NOT ANSWER"


def test_a_resource_without_a_good_version_is_withheld() -> None:
    report_ = refusals("p", quarantined(last_good_version=None, field=""))
    lines = texts(describe(PICTURE, "m", Pages(quarantine=[report_])))
    assert (
        "  now         it is sent to nobody, for no Envoy has taken a version of it yet; who holds one keeps it"
        in lines
    )
    assert not any("field" in line for line in lines)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("othr", "the registry knows no model 'othr'; did you mean other?"),
        ("zzz", "the registry knows no model 'zzz'; it knows m, other"),
    ],
)
def test_an_unknown_model_is_one_line(model: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        describe(PICTURE, model, Pages())
    assert str(raised.value) == message


def test_a_model_that_nobody_serves() -> None:
    picture = Picture(versions=(Version("m", 1, False, {}),))
    lines = texts(describe(picture, "m", Pages()))
    assert lines[1] == "No version is served: no instance answers for any."
    assert lines[4].split() == ["1", "-", "announced", "-", "-"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "10")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal, pipe = Terminal(), io.StringIO()
    for stream_ in (terminal, pipe):
        show([Line("a\x1b[2Jb", Tone.BAD), Line("0123456789abc")], stream_)
    assert pipe.getvalue() == "a [2Jb\n0123456789abc\n"
    assert terminal.getvalue() == "\x1b[31ma [2Jb\x1b[0m\n012345678…\n"


def test_names_are_escaped_in_paths() -> None:
    assert resource_page("CDS", "@rest/a%20b", view="envoy") == "/resources/CDS/%40rest%2Fa%2520b?view=envoy"
    assert resource_page() == "/resources"


def suspect(**changed: Any) -> dict[str, Any]:
    usual = {"instance": "tfs-0", "servables": 2, "since": 990.0, "held": "lost in bulk", "until": 1050.0}
    return {**usual, "check": "answers", "detail": "answers", **changed}


def test_lost_leases_of_one_control_plane() -> None:
    page = {
        "waiting": "",
        "suspects": [suspect(), suspect(instance="tfs-1", check="does not answer", detail="refuses")],
    }
    reports = [Report(Plane("plane-0", "h:1"), page)]
    assert lost_leases(reports, {}, 1000.0) == [
        "",
        "LEASES LOST",
        "INSTANCE  SINCE  SERVABLES  CHECK           USED ON FOR   UNTIL",
        "tfs-0     10 s   2          answers         lost in bulk  in 50 s",
        "tfs-1     10 s   2          fails: refuses  lost in bulk  in 50 s",
    ]


def test_lost_leases_of_several_control_planes_and_of_one_that_does_not_answer() -> None:
    reports = [
        Report(Plane("plane-0", "h:1"), {"waiting": "", "suspects": [suspect(until=None)]}),
        Report(Plane("plane-1", "h:2"), {"waiting": "the registry holds no instance", "suspects": []}),
        Report(Plane("plane-2", "h:3"), error="connection refused"),
    ]
    assert lost_leases(reports, {"plane-2": PlaneRecord(1, suspects=3)}, 1000.0) == [
        "",
        "LEASES LOST",
        "plane-1 does not serve Envoys yet: the registry holds no instance",
        "plane-2 says that 3 instances lost their leases, and can't be asked which: connection refused",
        "CONTROL PLANE  INSTANCE  SINCE  SERVABLES  CHECK    USED ON FOR   UNTIL",
        "plane-0        tfs-0     10 s   2          answers  lost in bulk  -",
    ]
    assert lost_leases([Report(Plane("plane-0", "h:1"), {"waiting": "", "suspects": []})], {}, 1000.0) == []
