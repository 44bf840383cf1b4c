"""Who asks for resources gets them, later changes of them, and nothing else."""

from __future__ import annotations

import pytest

from tests.conformance.client import KINDS, ROOTS, VARIANTS, Target, Variant
from tests.conformance.watch import Watch

each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
each_type = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
each_root = pytest.mark.parametrize("kind", sorted(ROOTS), ids=lambda each: {url: k for k, url in KINDS.items()}[each])
both_wildcards = pytest.mark.parametrize("by_name", [False, True], ids=["old-wildcard", "new-wildcard"])


def watching(target: Target, variant: Variant, kind: str) -> Watch:
    return Watch(target, target.client(variant), kind)


@each_variant
@each_root
@both_wildcards
async def test_a_wildcard_brings_everything(target: Target, variant, kind, by_name):
    await target.set({kind: "abc"})
    watch = watching(target, variant, kind)
    await watch.ask_for_all(by_name=by_name)
    await watch.expect({"a": "1", "b": "1", "c": "1"})
    await watch.quiet()


@each_variant
@each_root
@both_wildcards
async def test_a_wildcard_client_is_told_of_what_is_added_changed_and_removed(target: Target, variant, kind, by_name):
    await target.set({kind: "abc"})
    watch = watching(target, variant, kind)
    await watch.ask_for_all(by_name=by_name)
    await watch.expect({"a": "1", "b": "1", "c": "1"})
    await target.add(kind, "d", "2")
    await watch.expect({"d": "2"})
    await target.update(kind, "a", "3")
    await watch.expect({"a": "3"})
    await target.remove(kind, "b")
    await watch.expect(gone=["b"])
    await watch.quiet()


@each_variant
@each_root
async def test_a_wildcard_of_nothing_is_answered_and_filled_later(target: Target, variant, kind):
    watch = watching(target, variant, kind)
    await watch.ask_for_all()
    await watch.expect()
    await target.add(kind, "a")
    await watch.expect({"a": "1"})
    await watch.quiet()


@each_variant
@each_type
async def test_names_bring_those_resources_only(target: Target, variant, kind):
    await target.set({kind: "abcd"})
    watch = watching(target, variant, kind)
    await watch.ask("b", "d")
    await watch.expect({"b": "1", "d": "1"})
    await watch.quiet()


@each_variant
@each_type
async def test_names_can_be_added_one_after_the_other(target: Target, variant, kind):
    await target.set({kind: "abc"})
    watch = watching(target, variant, kind)
    await watch.ask("a")
    await watch.expect({"a": "1"})
    await watch.ask("b")
    await watch.expect({"b": "1"})
    await watch.quiet()


@each_variant
@each_type
async def test_an_update_brings_only_what_changed(target: Target, variant, kind):
    await target.set({kind: "abc"})
    watch = watching(target, variant, kind)
    await watch.ask("a", "b", "c")
    await watch.expect({"a": "1", "b": "1", "c": "1"})
    before = watch.versions["a"]
    await target.update(kind, "a", "2")
    await watch.expect({"a": "2"})
    assert watch.versions["a"] != before
    await watch.quiet()


@each_variant
@each_type
async def test_what_was_not_asked_for_is_not_sent(target: Target, variant, kind):
    await target.set({kind: "abc"})
    watch = watching(target, variant, kind)
    await watch.ask("a")
    await watch.expect({"a": "1"})
    await target.update(kind, "b", "2")
    await target.remove(kind, "c")
    await target.add(kind, "d", "2")
    await watch.quiet()


@each_variant
@each_type
async def test_what_does_not_exist_yet_comes_when_it_is_made(target: Target, variant, kind):
    await target.set({kind: "a"})
    watch = watching(target, variant, kind)
    await watch.ask("a", "z", absent="z")
    if variant.delta:
        await watch.expect({"a": "1"}, gone="z")
    else:
        await watch.expect({"a": "1"})
    await target.add(kind, "z", "2")
    await watch.expect({"z": "2"})
    await watch.quiet()


@each_variant
@each_type
async def test_only_what_does_not_exist_is_asked_for(target: Target, variant, kind):
    watch = watching(target, variant, kind)
    await watch.ask("y", "z", absent="yz")
    await watch.expect_told_absent("y", "z")
    await target.add(kind, "z", "2")
    await watch.expect({"z": "2"})
    await watch.quiet()


@each_variant
@each_type
async def test_what_is_removed_is_said_to_be_and_comes_back(target: Target, variant, kind):
    await target.set({kind: "ab"})
    watch = watching(target, variant, kind)
    await watch.ask("a", "b")
    await watch.expect({"a": "1", "b": "1"})
    await target.remove(kind, "b")
    await watch.expect_gone("b")
    await target.add(kind, "b", "2")
    await watch.expect({"b": "2"})
    await watch.quiet()


@each_variant
@each_type
async def test_the_newest_of_many_changes_arrives(target: Target, variant, kind):
    await target.set({kind: "ab"})
    watch = watching(target, variant, kind)
    await watch.ask("a", "b")
    await watch.expect({"a": "1", "b": "1"})
    for version in range(2, 40):
        await target.update(kind, "a", str(version))
    answers = await watch.expect_at_last("a", "39")
    assert answers <= 38
    await watch.quiet()


@each_variant
@each_type
async def test_versions_are_the_ones_that_were_set(target: Target, variant, kind):
    """What ii/xds-test-harness asserts of every response, so the server behind the adapter has to play along."""
    if not target.exact:
        pytest.skip("a server may have versions of its own")
    await target.set({kind: "ab"}, "first")
    watch = watching(target, variant, kind)
    await watch.ask("a", "b")
    await watch.expect({"a": "first", "b": "first"})
    assert watch.versions == {"a": "first", "b": "first"}
    await target.update(kind, "a", "second")
    await watch.expect({"a": "second"})
    assert watch.versions["a"] == "second"
    assert watch.versions["b"] == ("second" if watch.full else "first"), "one version for all that a response holds"
