"""YAML becomes JSON with lines, or is refused with a line."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelplane.policies.documents import DocumentError, read_documents, write_document
from tests.registry.policy.policies import MUTATED, VALID
from tests.support.examples import examples


def test_each_field_knows_its_line() -> None:
    first, second = read_documents("# c\na:\n  b: [x,\n    y]\n  3: 4\n---\n---\nc: 1\n")
    assert first.value == {"a": {"b": ["x", "y"], "3": 4}}
    lines = {(): 2, ("a",): 2, ("a", "b"): 3, ("a", "b", 1): 4, ("a", "3"): 5, ("a", "missing", "deep"): 2}
    assert {path: first.line(path) for path in lines} == lines
    assert (second.value, second.line(("c",))) == ({"c": 1}, 8)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("1:30", "1:30"),
        ("010", 10),
        ("1e3", 1000.0),
        ("2001-01-01", "2001-01-01"),
        (".nan", ".nan"),
        ("'3'", "3"),
        ("true", True),
        ("~", None),
        ("1" * 5000, "1" * 5000),
        ("<<: {a: 1}", {"<<": {"a": 1}}),
        ("{on: 1, 3: 2}", {"on": 1, "3": 2}),
    ],
)
def test_scalars_are_what_they_look_like(text: str, value: Any) -> None:
    assert [one.value for one in read_documents(f"a: {text}\n" if ":" not in text[:3] else text)] in (
        [{"a": value}],
        [value],
    )


_BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{chr(98 + at)}: &{chr(98 + at)} [{','.join(['*' + chr(97 + at)] * 10)}]\n" for at in range(8)
)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("a: 1\nb: [", 2, "not YAML"),
        ("a: 1\nb: 2\na: 3", 3, "the key 'a' is there twice; it stands in line 1"),
        ("a: 1\nb: !!python/object:os.system x", 2, "the tag !!python/object:os.system is not allowed"),
        ("a: !mine 1", 1, "the tag !mine is not allowed"),
        ("&a [*a]", 1, "nested more than"),
        ("[" * 5000, 1, "nested more than"),
        ("? [a]\n: 1", 1, "a key has to be a word or a number"),
        ("\n\tb: 1", 2, "not YAML"),
        ("a: 1\nb: \0", 2, "not YAML"),
        (_BOMB, 1, "more than 100000 values"),
    ],
)
def test_what_is_no_json_is_refused_with_its_line(text: str, line: int, said: str) -> None:
    with pytest.raises(DocumentError, match=said.replace("(", r"\(")) as caught:
        read_documents(text)
    assert caught.value.line == line


@given(st.text(st.characters(), max_size=60) | st.text("[]{}:-,&*!?#|>'\"%@` \n\tab1~.", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        documents = read_documents(text)
    except DocumentError as error:
        line = error.line
    else:
        assert all(document.line(()) >= 1 for document in documents)
        return
    assert (
        1
        <= line
        <= text.count("\n") + text.count("\r") + text.count("\x85") + 1 + text.count("\u2028") + text.count("\u2029")
    )


def _finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_finite, value.values())) and all(map(_written, value))
    if isinstance(value, list):
        return all(map(_finite, value))
    if isinstance(value, str):
        return _written(value)
    return not isinstance(value, float) or value - value == 0


def _written(text: str) -> bool:
    return text.isprintable()


@settings(max_examples=examples(30))
@given((VALID | MUTATED).filter(_finite))
def test_what_is_written_is_read_again(value: Any) -> None:
    assert [document.value for document in read_documents(write_document(value))] == ([] if value == "" else [value])
