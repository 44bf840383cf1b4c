"""Every field of a policy: what is allowed, what it means, its default, an example. Invariant: the reader, the JSON
schema and the documentation are all made of this table, so that they can't tell different things."""

from __future__ import annotations

from registry.policy import build
from registry.policy.model import API_VERSION, KIND, Balancing
from registry.policy.shapes import (
    Entry,
    ListOf,
    MapOf,
    Object,
    constant,
    duration,
    flag,
    number,
    one_of,
    share,
    size,
    text,
    whole,
)

LARGEST_VERSION = 2**63 - 1
_NO_CONTROL = r"[^\u0000-\u001f\u007f-\u009f]+"
_MANY = 2**31 - 1

NAME = text("a name: 1 to 512 characters, none of them a control character", _NO_CONTROL, 512)
VERSION = whole(0, LARGEST_VERSION)
VERSION_KEY = build.version_key(LARGEST_VERSION)
LABEL = text("a label: 1 to 128 characters, none of them a control character", _NO_CONTROL, 128)
_WORD = text("1 to 253 characters, none of them a control character", _NO_CONTROL, 253)
_PERCENT = number(0.01, 100)

_versions = Object(
    {
        "latest": Entry(whole(1, 1000), "The newest N versions that lie under the base path.", "1", "latest: 2"),
        "all": Entry(constant(True), "All versions that lie under the base path.", "", "all: true"),
        "specific": Entry(ListOf(VERSION, 100), "These versions.", "", "specific: [3, 4]"),
    },
    build.versions,
    {"minProperties": 1, "maxProperties": 1},
)

_instances = Object(
    {
        "replicas": Entry(
            whole(1, 100_000),
            "On how many instances; modelplane chooses them by memory and zone.",
            "on all that match the selector",
            "replicas: 2",
        ),
        "selector": Entry(
            MapOf(_WORD, _WORD, 32),
            "Only instances whose labels have these values.",
            "all managed instances",
            "selector: {gpu: a100}",
        ),
    },
    build.instances,
)

_traffic = Object(
    {
        "follow": Entry(
            constant("latest"),
            "Requests that name no version get the newest one, once its rollout has come to it.",
            "latest, without weights",
            "follow: latest",
        ),
        "weights": Entry(
            MapOf(VERSION_KEY, whole(0, 1_000_000), 100),
            "Requests that name no version are spread over these versions, in these parts.",
            "",
            "weights: {3: 90, 4: 10}",
        ),
        "stickyBy": Entry(
            build.STICKY_BY,
            "A request header (gRPC: metadata key). Requests with the same value get the same version, as long as the "
            "weights are the same. Read in lower case.",
            "each request is drawn anew",
            "stickyBy: x-user-id",
        ),
    },
    build.traffic,
    {"not": {"required": ["follow", "weights"]}},
)

_mirror = Object(
    {
        "percent": Entry(_PERCENT, "Of the requests, how many are sent there too.", "", "percent: 10", required=True),
        "version": Entry(VERSION, "The version that gets them; what it answers is thrown away.", "", "version: 4"),
        "model": Entry(NAME, "The model that gets them.", "this model", "model: digits-small"),
    },
    build.mirror,
    {"anyOf": [{"required": ["version"]}, {"required": ["model"]}]},
)

_step = Object(
    {
        "percent": Entry(_PERCENT, "Of the requests, how many the new version gets.", "", "percent: 5", required=True),
        "duration": Entry(duration("1s", "720h"), "The step lasts at least this long.", "", "duration: 5m"),
        "requests": Entry(
            whole(1, 1_000_000_000),
            "The step lasts until the new version has answered this many requests; with a duration too, until both.",
            "",
            "requests: 500",
        ),
    },
    build.step,
)

_latency = Object(
    {
        "quantile": Entry(number(0.5, 0.9999), "Which latency is compared.", "0.99", "quantile: 0.95"),
        "ratio": Entry(
            number(1, 1000), "The new version's latency may be this many times the old one's.", "1.5", "ratio: 2"
        ),
        "atLeast": Entry(
            duration("0ms", "1h"), "A latency of less than this is never too slow.", "20ms", "atLeast: 50ms"
        ),
    },
    build.latency,
)

_difference = Object(
    {
        "share": Entry(share("0.01%"), "Of the requests, how many both versions are asked.", "5%", "share: 10%"),
        "tolerance": Entry(
            number(0, 1e12),
            "How far two numbers may differ, relative to the larger, absolute where both are below 1.",
            "0.01",
            "tolerance: 0.001",
        ),
        "outputs": Entry(
            MapOf(_WORD, number(0, 1e12), 100),
            "Another tolerance for the output of this name.",
            "the tolerance above",
            "outputs: {scores: 0.001}",
        ),
        "atMost": Entry(
            share("0%"), "Of the compared requests, how many may differ by more than that.", "1%", "atMost: 0.5%"
        ),
    },
    build.difference,
)

_gates = Object(
    {
        "errorRate": Entry(
            share("0%"),
            "Of the new version's answers, how many may be errors. What fails on the old version too, in the same "
            "time, is not the new one's fault.",
            "1%",
            "errorRate: 0.5%",
        ),
        "latency": Entry(
            _latency, "How slow the new version may be, compared with the old one.", "not judged", "latency: {ratio: 2}"
        ),
        "difference": Entry(
            _difference,
            "How far the new version's answers may be from the old one's.",
            "not judged",
            "difference: {atMost: 2%}",
        ),
        "minRequests": Entry(
            whole(1, 1_000_000), "Nothing is judged by fewer answers than this.", "50", "minRequests: 200"
        ),
    },
    build.gates,
)

_rollout = Object(
    {
        "strategy": Entry(
            one_of(build.Strategy),
            "rolling: all traffic switches to a new version at once; canary: step by step, as long as the gates hold.",
            "rolling",
            "strategy: canary",
        ),
        "maxLoading": Entry(
            share("1%"),
            "Rolling: of the model's instances, how many may be loading at a time; at least one always may.",
            "25%",
            "maxLoading: 50%",
        ),
        "switchAt": Entry(
            share("1%"),
            "Rolling: of the model's instances, how many must be ready with a new version before it gets the traffic.",
            "100%",
            "switchAt: 80%",
        ),
        "steps": Entry(
            ListOf(_step, 50),
            "Canary: rising percents of the requests for the new version; after the last step it gets all.",
            "",
            "steps: [{percent: 5, requests: 500}, {percent: 50, duration: 5m}]",
        ),
        "gates": Entry(_gates, "Canary: what takes the new version back.", "errorRate: 1%", "gates: {errorRate: 2%}"),
    },
    build.rollout,
)

_spec = Object(
    {
        "basePath": Entry(
            text(
                "an absolute path, or a URI such as gs://bucket/digits",
                r"(?:/|[a-zA-Z][a-zA-Z0-9+.\-]*://)[^\u0000-\u001f\u007f-\u009f]*",
                4096,
            ),
            "Where the versions lie, as the model servers see it. Without it modelplane neither loads nor unloads the "
            "model, it only routes.",
            "not loaded by modelplane",
            "basePath: /models/digits",
        ),
        "versions": Entry(_versions, "Which versions are wanted.", "latest: 1", "versions: {latest: 2}"),
        "instances": Entry(_instances, "Where they are wanted.", "all managed instances", "instances: {replicas: 2}"),
        "labels": Entry(
            MapOf(LABEL, VERSION, 100),
            "Names for versions that requests may use.",
            "none",
            "labels: {stable: 3, canary: 4}",
        ),
        "traffic": Entry(
            _traffic, "Which version a request gets that names none.", "follow: latest", "traffic: {follow: latest}"
        ),
        "mirror": Entry(
            _mirror,
            "Requests that are sent to another version or model too.",
            "none",
            "mirror: {version: 4, percent: 10}",
        ),
        "timeout": Entry(
            duration("1ms", "24h"), "The longest that a request may take.", "the client's deadline", "timeout: 2s"
        ),
        "retries": Entry(
            Object(
                {
                    "attempts": Entry(
                        whole(0, 100),
                        "How often a request that failed on one instance is tried on another.",
                        "",
                        "attempts: 2",
                        required=True,
                    )
                },
                build.only("attempts"),
            ),
            "What happens with a request that failed and is safe to repeat.",
            "the control plane's --num-retries",
            "retries: {attempts: 2}",
        ),
        "balancing": Entry(
            one_of(Balancing), "How Envoy chooses an instance.", "leastRequest", "balancing: roundRobin"
        ),
        "circuitBreaking": Entry(
            Object(
                {
                    "maxRequests": Entry(
                        whole(1, _MANY),
                        "Requests in flight per Envoy, at most; more are UNAVAILABLE.",
                        "the control plane's --max-requests",
                        "maxRequests: 1024",
                    ),
                    "maxConnections": Entry(
                        whole(1, _MANY),
                        "Connections per Envoy, at most.",
                        "the control plane's --max-connections",
                        "maxConnections: 64",
                    ),
                },
                build.circuit_breaking,
            ),
            "What one model may take of an Envoy.",
            "the control plane's",
            "circuitBreaking: {maxRequests: 1024}",
        ),
        "outlierDetection": Entry(
            Object(
                {
                    "consecutiveErrors": Entry(
                        whole(1, _MANY),
                        "After this many server errors in a row an instance is left out for a while.",
                        "the control plane's --ejection-errors",
                        "consecutiveErrors: 5",
                    ),
                    "ejectionTime": Entry(
                        duration("1ms", "24h"),
                        "For how long, times the number of its ejections.",
                        "the control plane's --ejection-time",
                        "ejectionTime: 5s",
                    ),
                    "maxEjectionPercent": Entry(
                        whole(0, 100),
                        "Of the instances, how many may be left out at once; 0: none ever.",
                        "the control plane's --max-ejection-percent",
                        "maxEjectionPercent: 50",
                    ),
                },
                build.outlier_detection,
            ),
            "When an instance that answers with errors is left out.",
            "the control plane's",
            "outlierDetection: {consecutiveErrors: 5}",
        ),
        "maxRequestBytes": Entry(
            size(1, _MANY),
            "The largest request; a larger one is RESOURCE_EXHAUSTED.",
            "the control plane's --max-request-bytes",
            "maxRequestBytes: 16MiB",
        ),
        "warmUp": Entry(
            Object(
                {
                    "requests": Entry(
                        whole(0, 1000),
                        "How many requests a version must have answered on an instance before it is ready there.",
                        "",
                        "requests: 3",
                        required=True,
                    )
                },
                build.only("requests"),
            ),
            "What a version must do before it gets requests.",
            "one that proves it",
            "warmUp: {requests: 3}",
        ),
        "rollout": Entry(
            _rollout, "How a new version takes over.", "strategy: rolling", "rollout: {strategy: rolling}"
        ),
        "paused": Entry(flag(), "true: rollouts of this model stay where they are.", "false", "paused: true"),
    },
    build.spec,
)

_metadata = Object(
    {"name": Entry(NAME, "The model's name, as clients spell it.", "", "name: digits", required=True)},
    build.only("name"),
)

MODEL: Object = Object(
    {
        "apiVersion": Entry(constant(API_VERSION), "The form of the document.", "", f"apiVersion: {API_VERSION}", True),
        "kind": Entry(constant(KIND), "What it is about.", "", f"kind: {KIND}", True),
        "metadata": Entry(_metadata, "Which one.", "", "metadata: {name: digits}", True),
        "spec": Entry(_spec, "What is wanted of it.", "all defaults", "spec: {basePath: /models/digits}"),
    },
    build.policy,
)
"""A whole document."""
