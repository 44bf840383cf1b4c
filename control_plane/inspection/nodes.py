"""Which nodes a CSDS request asks about. Pure; the rules of envoy/type/matcher/v3/{node,string,struct,value}.proto.

Invariant: a matcher costs the length of what it looks at. Regular expressions are therefore not among them: Python's
can take for ever, and a request comes from whoever reaches the port.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class MatcherError(ValueError):
    """A matcher that is not served; the message is for the client."""


def matches(node: Any, matchers: Iterable[Any]) -> bool:
    """Whether one of the NodeMatchers fits; without any, every node does. Raises MatcherError."""
    found = [_node(node, matcher) for matcher in matchers]
    return any(found) or not found


def _node(node: Any, matcher: Any) -> bool:
    by_id = not matcher.HasField("node_id") or _string(node.id, matcher.node_id)
    by_metadata = [_struct(node.metadata, each) for each in matcher.node_metadatas]
    return by_id and all(by_metadata)


def _string(text: str, matcher: Any) -> bool:
    kind = matcher.WhichOneof("match_pattern")
    if kind not in ("exact", "prefix", "suffix", "contains"):
        raise MatcherError(f"no node can be matched by {kind or 'nothing'}; use exact, prefix, suffix or contains")
    pattern = getattr(matcher, kind)
    if matcher.ignore_case:
        text, pattern = text.lower(), pattern.lower()
    match kind:
        case "exact":
            return bool(text == pattern)
        case "prefix":
            return text.startswith(pattern)
        case "suffix":
            return text.endswith(pattern)
        case _:
            return pattern in text


def _struct(metadata: Any, matcher: Any) -> bool:
    value: Any = None
    fields = metadata.fields
    for at, segment in enumerate(matcher.path):
        if segment.key not in fields:
            return False
        value = fields[segment.key]
        if at < len(matcher.path) - 1:
            if value.WhichOneof("kind") != "struct_value":
                return False
            fields = value.struct_value.fields
    return value is not None and _value(value, matcher.value)


def _value(value: Any, matcher: Any) -> bool:
    kind = value.WhichOneof("kind")
    wanted = matcher.WhichOneof("match_pattern")
    match wanted:
        case "null_match":
            return bool(kind == "null_value")
        case "present_match":
            return bool(matcher.present_match)
        case "bool_match":
            return bool(kind == "bool_value" and value.bool_value == matcher.bool_match)
        case "string_match":
            return kind == "string_value" and _string(value.string_value, matcher.string_match)
        case "double_match":
            return kind == "number_value" and _double(value.number_value, matcher.double_match)
        case "list_match":
            return kind == "list_value" and any(
                _value(each, matcher.list_match.one_of) for each in value.list_value.values
            )
        case "or_match":
            return any(_value(value, each) for each in matcher.or_match.value_matchers)
        case _:
            raise MatcherError(f"no metadata can be matched by {wanted or 'nothing'}")


def _double(number: float, matcher: Any) -> bool:
    if matcher.WhichOneof("match_pattern") == "range":
        return bool(matcher.range.start <= number < matcher.range.end)
    return bool(number == matcher.exact)
