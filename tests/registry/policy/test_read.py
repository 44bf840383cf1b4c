"""Documents are read, or refused with every problem told; the schema and the spelling out agree with the reader."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.pb import records_pb2
from registry.policy.edit import with_labels, with_paused, with_traffic
from registry.policy.model import Canary, CircuitBreaking, Gates, Rolling, Step, Versions
from registry.policy.read import PolicyErrors, read_policy
from registry.policy.schema import schema
from registry.policy.stored import StoredPolicy, decode_stored, encode_stored, read_stored
from registry.policy.write import document_of
from registry.records import RecordError
from registry.traffic import Mirror
from tests.registry.policy.policies import ANYTHING, MUTATED, VALID
from tests.support.examples import examples


def of(spec: dict[str, Any], name: Any = "digits") -> dict[str, Any]:
    return {"apiVersion": "modelplane/v1", "kind": "Model", "metadata": {"name": name}, "spec": spec}


def told(document: Any) -> list[str]:
    with pytest.raises(PolicyErrors) as caught:
        read_policy(document)
    return list(map(str, caught.value.problems))


@given(VALID)
def test_a_policy_is_read_and_spelt_out_again(document: dict[str, Any]) -> None:
    policy = read_policy(document)
    assert read_policy(document_of(policy)) == policy
    assert accepts(schema(), document)
    assert accepts(schema(), document_of(policy))


@settings(max_examples=examples(400))
@given(MUTATED | ANYTHING)
def test_whatever_is_given_is_read_or_refused_with_a_field(document: Any) -> None:
    """Never another exception; and what the schema refuses, the reader refuses."""
    try:
        policy = read_policy(document)
    except PolicyErrors as errors:
        problems = errors.problems
    else:
        assert read_policy(document_of(policy)) == policy
        assert accepts(schema(), document)
        return
    assert all(str(problem).encode() for problem in problems)
    assert any(problem.path or not isinstance(document, dict) for problem in problems)


def accepts(wanted: Any, value: Any) -> bool:
    """A judge of the part of JSON schema that ours uses."""
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}
    if "type" in wanted:
        number = wanted["type"] in ("integer", "number")
        if not isinstance(value, kinds[wanted["type"]]) or (number and isinstance(value, bool)):
            return False
    checks = {
        "const": lambda one: type(value) is type(one) and value == one,
        "enum": lambda ones: value in ones,
        "minimum": lambda one: value >= one,
        "maximum": lambda one: value <= one,
        "pattern": lambda one: re.search(one, value) is not None,
        "minLength": lambda one: len(value) >= one,
        "maxLength": lambda one: len(value) <= one,
        "minItems": lambda one: len(value) >= one,
        "maxItems": lambda one: len(value) <= one,
        "minProperties": lambda one: len(value) >= one,
        "maxProperties": lambda one: len(value) <= one,
        "required": lambda names: all(name in value for name in names),
        "items": lambda one: all(accepts(one, item) for item in value),
        "propertyNames": lambda one: all(accepts(one, name) for name in value),
        "anyOf": lambda ones: any(accepts(one, value) for one in ones),
        "not": lambda one: not accepts(one, value),
    }
    properties = wanted.get("properties", {})
    rest = wanted.get("additionalProperties")
    unknown = set(wanted) - {*checks, "type", "properties", "additionalProperties", "description", "title", "$schema"}
    assert not unknown, unknown
    if not all(check(wanted[name]) for name, check in checks.items() if name in wanted):
        return False
    if not isinstance(value, dict) or rest is None:
        return True
    return all(
        accepts(properties[name], one) if name in properties else rest is not False and accepts(rest, one)
        for name, one in value.items()
    )


def test_a_whole_policy() -> None:
    policy = read_policy(
        of(
            {
                "basePath": "/models/digits",
                "versions": {"specific": [4, 3]},
                "instances": {"replicas": 2, "selector": {"gpu": "a100"}},
                "labels": {"stable": 3},
                "traffic": {"weights": {"3": 90, "4": 10}, "stickyBy": "X-User-Id"},
                "mirror": {"version": 4, "percent": 10},
                "timeout": "1500ms",
                "retries": {"attempts": 2},
                "circuitBreaking": {"maxRequests": 7},
                "maxRequestBytes": "16MiB",
                "warmUp": {"requests": 3},
                "rollout": {"strategy": "canary", "steps": [{"percent": 5, "requests": 500}], "gates": {"latency": {}}},
            }
        )
    )
    assert (policy.name, policy.base_path, policy.versions) == (
        "digits",
        "/models/digits",
        Versions(None, False, (3, 4)),
    )
    assert (policy.replicas, policy.selector, policy.warm_up_requests) == (2, {"gpu": "a100"}, 3)
    assert (policy.follow_latest, policy.weights, policy.sticky_by) == (False, {3: 90, 4: 10}, "x-user-id")
    assert policy.mirror == Mirror(10.0, "digits", 4)
    assert (policy.timeout, policy.retries, policy.max_request_bytes) == (1.5, 2, 16 * 2**20)
    assert policy.circuit_breaking == CircuitBreaking(7, None)
    assert policy.rollout == Canary((Step(5.0, None, 500),), Gates(latency_ratio=1.5))
    assert policy.named_versions == {3, 4}


def test_a_bare_policy_has_the_defaults() -> None:
    policy = read_policy({"apiVersion": "modelplane/v1", "kind": "Model", "metadata": {"name": "digits"}})
    assert (policy.versions, policy.follow_latest, policy.rollout) == (Versions(latest=1), True, Rolling(0.25, 1.0))
    assert (policy.base_path, policy.timeout, policy.balancing, policy.replicas) == ("", None, None, None)


@pytest.mark.parametrize(
    ("document", "problems"),
    [
        (None, ["document: null is not allowed; it must be an object with apiVersion, kind, metadata, spec"]),
        ({}, ["apiVersion: it is missing; it must be modelplane/v1", "kind: it is missing", "metadata: it is missing"]),
        (of({}, name=""), ['metadata.name: "" is not allowed; it must be a name']),
        (of({}, name="a\nb"), [r'metadata.name: "a\nb" is not allowed']),
        (of({"timeuot": "2s"}), ["spec.timeuot: no such field; did you mean timeout?"]),
        (of({"timeout": 2}), ["spec.timeout: 2 is not allowed; it must be a duration from 1ms to 24h"]),
        (of({"timeout": "25h"}), ['spec.timeout: "25h" is not allowed']),
        (of({"timeout": None}), ["spec.timeout: null is not allowed"]),
        (
            of({"retries": {"attempts": True}}),
            ["spec.retries.attempts: true is not allowed; it must be a whole number"],
        ),
        (of({"versions": {"latest": 1, "all": True}}), ["spec.versions: latest and all can't both hold"]),
        (of({"versions": {}}), ["spec.versions: it is empty"]),
        (of({"versions": {"specific": [3, 3]}}), ["spec.versions.specific: version 3 is there twice"]),
        (
            of({"versions": {"specific": [3]}, "labels": {"a b": 4}}),
            ['spec.labels["a b"]: version 4: it is not among the wanted versions, spec.versions.specific: [3]'],
        ),
        (of({"instances": {"replicas": 1}}), ["spec.instances: it has no effect without basePath"]),
        (of({"traffic": {"weights": {"3": 0}}}), ["spec.traffic.weights: no version gets any traffic"]),
        (
            of({"traffic": {"weights": {"03": 1}}}),
            ['spec.traffic.weights["03"]: "03" is not allowed; it must be a version'],
        ),
        (
            of({"traffic": {"weights": {"3": 1}, "follow": "latest"}}),
            ["spec.traffic: follow and weights can't both hold"],
        ),
        (
            of({"traffic": {"stickyBy": "x-modelplane-x"}}),
            ["spec.traffic.stickyBy: ", "x-modelplane- are modelplane's own"],
        ),
        (of({"mirror": {"percent": 10}}), ["spec.mirror: it says not where to"]),
        (of({"mirror": {"percent": 10, "model": "digits"}}), ["spec.mirror.model: it is the model itself"]),
        (of({"rollout": {"steps": [{"percent": 1}]}}), ["spec.rollout.steps: it belongs to strategy: canary"]),
        (of({"rollout": {"strategy": "canary"}}), ["spec.rollout.steps: it is missing"]),
        (
            of({"rollout": {"strategy": "canary", "steps": [{"percent": 5}, {"percent": 5}]}}),
            ["spec.rollout.steps[1].percent: 5 is not more than the 5 of the step before"],
        ),
        (of({"rollout": {"maxLoading": 0.25}}), ["spec.rollout.maxLoading: 0.25 is not allowed", "its percent sign"]),
    ],
)
def test_what_is_wrong_is_told_with_its_field(document: Any, problems: list[str]) -> None:
    text = "\n".join(told(document))
    assert [problem for problem in problems if problem not in text] == [], text


def test_every_problem_is_told_at_once() -> None:
    assert len(told(of({"timeout": 2, "x": 1, "paused": 1, "rollout": {"maxLoading": "0%"}}, name=3))) == 5


@given(VALID)
def test_what_is_stored_comes_back(document: dict[str, Any]) -> None:
    stored = StoredPolicy(document, 7, 1.5, "ann@host", "why")
    name = document["metadata"]["name"]
    assert decode_stored(encode_stored(stored)) == stored
    assert read_stored(encode_stored(stored), name) == (stored, read_policy(document))
    with pytest.raises(RecordError, match=r"metadata\.name"):
        read_stored(encode_stored(stored), f"{name}x")


@given(
    st.binary(max_size=40)
    | ANYTHING.map(lambda value: json.dumps(value).encode())
    | MUTATED.map(lambda value: json.dumps({"document": value, "generation": 1, "at": value}).encode())
)
def test_a_stored_value_is_read_or_refused(raw: bytes) -> None:
    try:
        _, policy = read_stored(raw, "digits")
    except RecordError:
        return
    assert policy.name == "digits"


def test_the_published_record_is_the_stored_one() -> None:
    stored = StoredPolicy(of({"timeout": "2s", "labels": {"ü": 3}}), 7, 1.5, "ann@host", "why")
    message = json_format.Parse(encode_stored(stored), records_pb2.Policy())
    assert decode_stored(json_format.MessageToJson(message).encode()) == stored


def test_deep_nesting_in_the_registry_is_no_policy() -> None:
    with pytest.raises(RecordError):
        decode_stored(b"[" * 100_000)


def test_a_change_leaves_the_rest() -> None:
    document = of(
        {"labels": {"a": 1, "b": 2}, "traffic": {"stickyBy": "x-user", "follow": "latest"}, "timeout": "2000ms"}
    )
    before = copy.deepcopy(document)
    changed = with_paused(with_traffic(with_labels(document, {"c": 3}, ["a"]), {3: 90, 4: 10}), paused=True)
    assert document == before
    assert changed["spec"] == {
        "labels": {"b": 2, "c": 3},
        "traffic": {"weights": {"3": 90, "4": 10}, "stickyBy": "x-user"},
        "timeout": "2000ms",
        "paused": True,
    }
    back = with_paused(with_traffic(changed, {}), paused=False)
    assert back["spec"]["traffic"] == {"follow": "latest", "stickyBy": "x-user"}
    assert "paused" not in back["spec"]
    with pytest.raises(KeyError):
        with_labels(document, {}, ["z"])
