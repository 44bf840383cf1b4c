"""Who no longer asks for a resource is no longer sent it."""

from __future__ import annotations

import pytest

from tests.conformance.client import VARIANTS, Target
from tests.conformance.test_subscribing import each_root, each_type, each_variant, watching


@each_variant
@each_type
async def test_some_names(target: Target, variant, kind):
    await target.set({kind: "abcd"})
    watch = watching(target, variant, kind)
    await watch.ask("a", "b", "c")
    await watch.expect({"a": "1", "b": "1", "c": "1"})
    await watch.drop("b", "c")
    await target.update(kind, "b", "2")
    await target.remove(kind, "c")
    await watch.quiet()
    await target.update(kind, "a", "2")
    await watch.expect({"a": "2"})
    await watch.quiet()


@each_variant
@each_type
async def test_all_names_one_after_the_other(target: Target, variant, kind):
    """An empty list of names is the wildcard only for who never named any."""
    await target.set({kind: "abc"})
    watch = watching(target, variant, kind)
    await watch.ask("a", "b")
    await watch.expect({"a": "1", "b": "1"})
    await watch.drop("a")
    await watch.drop("b")
    await target.update(kind, "a", "2")
    await target.update(kind, "b", "2")
    await target.update(kind, "c", "2")
    await watch.quiet()


@pytest.mark.parametrize("variant", [each for each in VARIANTS if not each.delta], ids=str)
@each_type
async def test_an_empty_name_names_nothing(target: Target, variant, kind):
    """How ii/xds-test-harness drops everything. No resource may have an empty name, so no answer has one."""
    if not target.exact:
        pytest.skip("a server may answer that there is nothing of that name")
    await target.set({kind: "abc"})
    watch = watching(target, variant, kind)
    await watch.ask("a", "b")
    last = await watch.expect({"a": "1", "b": "1"})
    await watch.client.write(kind, resource_names=[""], version_info=last.version, response_nonce=last.nonce)
    watch.client.names(kind).clear()
    watch.forget("a", "b")
    await watch.quiet()
    await target.update(kind, "a", "2")
    await watch.quiet()


@each_variant
@each_type
async def test_names_that_come_back_are_sent_again(target: Target, variant, kind):
    """A client forgets what it drops, so it needs it again though nothing changed."""
    await target.set({kind: "ab"})
    watch = watching(target, variant, kind)
    await watch.ask("a", "b")
    await watch.expect({"a": "1", "b": "1"})
    await watch.drop("a")
    await watch.ask("a")
    await watch.expect({"a": "1"})
    await watch.quiet()


@each_variant
@each_type
async def test_names_that_were_never_asked_for(target: Target, variant, kind):
    await target.set({kind: "ab"})
    watch = watching(target, variant, kind)
    await watch.ask("a")
    await watch.expect({"a": "1"})
    await watch.drop("b", "nowhere")
    await watch.quiet()
    await target.update(kind, "a", "2")
    await watch.expect({"a": "2"})


@each_variant
@each_root
async def test_a_name_beside_the_wildcard_goes_on_without_it(target: Target, variant, kind):
    await target.set({kind: "abc"})
    watch = watching(target, variant, kind)
    await watch.ask_for_all(by_name=True)
    await watch.expect({"a": "1", "b": "1", "c": "1"})
    await watch.ask("a")
    if variant.delta:
        # "Incremental xDS": who subscribes is answered, though the wildcard has brought it.
        await watch.expect({"a": "1"})
    await watch.stop_asking_for_all("a")
    await target.update(kind, "b", "2")
    await watch.quiet()
    await target.update(kind, "a", "2")
    await watch.expect({"a": "2"})
    await watch.quiet()


@each_variant
@each_root
async def test_the_wildcard_goes_on_without_a_name_beside_it(target: Target, variant, kind):
    await target.set({kind: "ab"})
    watch = watching(target, variant, kind)
    await watch.ask_for_all(by_name=True)
    await watch.expect({"a": "1", "b": "1"})
    await watch.ask("a")
    if variant.delta:
        await watch.expect({"a": "1"})
    await watch.client.drop(kind, "a")
    if variant.delta:
        # "Unsubscribing": the client can't know whether the wildcard covers the name, so it is told.
        await watch.expect({"a": "1"})
    await target.update(kind, "a", "2")
    await watch.expect({"a": "2"})
    await watch.quiet()
