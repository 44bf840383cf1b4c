"""What NACKs tell. The messages are those of the real Envoy 1.40, where it says so."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from control_plane.xds.blame import field_of, names_in

# Envoy 1.40, each an answer to a resource of the name bad-1 that has the fault.
RETRY_BUDGET = (
    'goo.gle/debugproto  \nname: "bad-1"\ntype: EDS\neds_cluster_config {\n  eds_config {\n    ads {\n    }\n  }\n}\n'
    "connect_timeout {\n  seconds: 1\n}\ncircuit_breakers {\n  thresholds {\n    retry_budget {\n"
    "      budget_percent {\n        value: 500\n      }\n    }\n  }\n}\n: Proto constraint validation failed ("
    "ClusterValidationError.CircuitBreakers: embedded message failed validation | caused by "
    "CircuitBreakersValidationError.Thresholds[0]: embedded message failed validation | caused by "
    "ThresholdsValidationError.RetryBudget: embedded message failed validation | caused by "
    "RetryBudgetValidationError.BudgetPercent: embedded message failed validation | caused by "
    "PercentValidationError.Value: value must be inside range [0, 100])"
)
TWO_BY_NAME = (
    "Error adding/updating cluster(s) bad-1: malformed IP address: not.an.ip. Consider setting resolver_name or "
    "setting cluster type to 'STRICT_DNS' or 'LOGICAL_DNS', bad-2: malformed IP address: not.an.ip. Consider setting "
    "resolver_name or setting cluster type to 'STRICT_DNS' or 'LOGICAL_DNS'"
)
OWN_RULE = (
    "Error adding/updating cluster(s) bad-1: goo.gle/debugproto  \n: Proto constraint validation failed (field: "
    '"upstream_protocol_options", reason: is required)'
)
WEIGHT = (
    'goo.gle/debugproto  \ncluster_name: "bad-1"\nendpoints {\n  lb_endpoints {\n    load_balancing_weight {\n    }\n'
    "  }\n}\n: Proto constraint validation failed (ClusterLoadAssignmentValidationError.Endpoints[0]: embedded message "
    "failed validation | caused by LocalityLbEndpointsValidationError.LbEndpoints[0]: embedded message failed "
    "validation | caused by LbEndpointValidationError.LoadBalancingWeight: value must be greater than or equal to 1)"
)
STAT_PREFIX = (
    "Error adding/updating listener(s) bad-1: goo.gle/debugproto  \n: Proto constraint validation failed "
    "(HttpConnectionManagerValidationError.StatPrefix: value length must be at least 1 characters)\n"
)
TAKEN = "Error adding/updating listener(s) bad-1: cannot bind '127.0.0.1:42079': Address already in use\n"
NO_LB = (
    "Error adding/updating cluster(s) bad-1: cluster manager: cluster provided LB specified but cluster 'bad-1' did "
    "not provide one. Check cluster documentation."
)
DURATION = "Invalid duration: Expected positive duration: goo.gle/debugproto  \nseconds: -1\n"
WRONG_NAME = "Unexpected EDS cluster (expecting bad-1): other"
# grpcio's own client.
GRPC = (
    "xDS response validation errors: [resource index 0: bad-1: INVALID_ARGUMENT: errors validating Cluster resource: "
    "[field:lb_policy error:LB policy is not supported]]"
)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (RETRY_BUDGET, "Cluster.circuit_breakers.thresholds[0].retry_budget.budget_percent.value"),
        (WEIGHT, "ClusterLoadAssignment.endpoints[0].lb_endpoints[0].load_balancing_weight"),
        (STAT_PREFIX, "HttpConnectionManager.stat_prefix"),
        (OWN_RULE, "upstream_protocol_options"),
        (GRPC, "lb_policy"),
        (TAKEN, ""),
        (DURATION, ""),
        ("", ""),
    ],
)
def test_the_field(message, field):
    assert field_of(message) == field


@pytest.mark.parametrize(
    ("message", "names"),
    [
        (RETRY_BUDGET, ["bad-1"]),
        (TWO_BY_NAME, ["bad-1", "bad-2"]),
        (OWN_RULE, ["bad-1"]),
        (WEIGHT, ["bad-1"]),
        (STAT_PREFIX, ["bad-1"]),
        (TAKEN, ["bad-1"]),
        (NO_LB, ["bad-1"]),
        (WRONG_NAME, ["bad-1"]),
        (GRPC, ["bad-1"]),
        (DURATION, []),
        ("", []),
    ],
)
def test_the_names(message, names):
    others = {"bad", "bad-", "ad-1", "bad-11", "@rest/bad-1", "bad-1@1"}
    assert names_in(message, {"bad-1", "bad-2"} | others) == names


@pytest.mark.parametrize("name", ["m@1", "@rest/m@12", "a%2Fb", "v1.0", "odd:", "m~x+y", "ends.in.a.stop."])
def test_names_as_clusters_have_them(name):
    assert names_in(f"Error adding/updating cluster(s) {name}: no good", {name, "m", "a", "x"}) == [name]
    assert names_in(f'\nname: "{name}"\n', {name, "m", "a", "x"}) == [name]


def test_a_long_message_is_read_at_its_ends():
    assert names_in("first " + "x" * 200_000 + " middle " + "y" * 200_000 + " last", {"first", "middle", "last"}) == [
        "first",
        "last",
    ]


@given(st.text(max_size=200), st.sets(st.text(min_size=1, max_size=5)))
def test_any_text_will_do(message, names):
    assert set(names_in(message, names)) <= names
    assert isinstance(field_of(message), str)
