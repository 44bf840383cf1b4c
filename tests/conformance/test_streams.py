"""What belongs to a stream as a whole: several types on one, answers to it, its beginning and its end."""

from __future__ import annotations

import grpc
import pytest

from tests.conformance.client import CDS, ECDS, EDS, KINDS, LDS, RDS, VARIANTS, Target, Variant
from tests.conformance.test_subscribing import each_root, each_type, each_variant, watching
from tests.conformance.watch import Watch

DELTA = [variant for variant in VARIANTS if variant.delta]
AGGREGATED = [variant for variant in VARIANTS if variant.aggregated]
SEPARATE = [variant for variant in VARIANTS if not variant.aggregated]


@pytest.mark.parametrize("variant", AGGREGATED, ids=str)
@pytest.mark.parametrize(("first", "second"), [(CDS, LDS), (EDS, RDS), (RDS, EDS), (LDS, ECDS)])
async def test_types_on_one_stream_have_nothing_to_do_with_each_other(target: Target, variant, first, second):
    await target.set({first: "abc", second: "abc"})
    client = target.client(variant)
    one, two = Watch(target, client, first), Watch(target, client, second)
    await one.ask("b")
    await one.expect({"b": "1"})
    await two.ask("b")
    await two.expect({"b": "1"})
    await target.update(first, "b", "2")
    await one.expect({"b": "2"})
    await one.quiet()
    await target.update(second, "b", "2")
    await two.expect({"b": "2"})
    await two.quiet()
    await one.drop("b")
    await target.update(first, "b", "3")
    await target.update(second, "b", "3")
    await two.expect({"b": "3"})
    await two.quiet()


@pytest.mark.parametrize("variant", AGGREGATED, ids=str)
async def test_all_types_on_one_stream(target: Target, variant):
    await target.set(dict.fromkeys(KINDS.values(), "ab"))
    client = target.client(variant)
    watches = {kind: Watch(target, client, kind) for kind in (CDS, EDS, LDS, RDS, ECDS)}
    for watch in watches.values():
        await watch.ask("a", "b")
        await watch.expect({"a": "1", "b": "1"})
    await target.update(EDS, "a", "2")
    await watches[EDS].expect({"a": "2"})
    await target.update(RDS, "b", "2")
    await watches[RDS].expect({"b": "2"})
    for watch in watches.values():
        await watch.quiet()


@pytest.mark.parametrize("variant", DELTA, ids=str)
@each_type
async def test_a_client_that_comes_back_is_sent_only_what_it_lacks(target: Target, variant: Variant, kind):
    await target.set({kind: "abc"})
    before = watching(target, variant, kind)
    await before.ask("a", "b", "c")
    await before.expect({"a": "1", "b": "1", "c": "1"})
    before.client.close()
    await target.update(kind, "a", "2")
    await target.remove(kind, "c")
    after = watching(target, variant, kind)
    await after.client.ask(kind, "a", "b", "c", initial_resource_versions=before.versions)
    after.held = dict.fromkeys("bc", "1")
    await after.expect({"a": "2"}, gone="c")
    await after.quiet()


@pytest.mark.parametrize("variant", DELTA, ids=str)
@each_root
async def test_a_wildcard_client_that_comes_back_is_sent_only_what_it_lacks(target: Target, variant: Variant, kind):
    await target.set({kind: "abc"})
    before = watching(target, variant, kind)
    await before.ask_for_all()
    await before.expect({"a": "1", "b": "1", "c": "1"})
    before.client.close()
    after = watching(target, variant, kind)
    after.wildcard, after.held = True, dict.fromkeys("abc", "1")
    await after.client.ask(kind, initial_resource_versions=before.versions)
    await after.quiet()
    await target.remove(kind, "c")
    await after.expect(gone="c")


@each_variant
@each_type
async def test_what_was_refused_does_not_come_again_and_what_is_newer_does(target: Target, variant, kind):
    await target.set({kind: "ab"})
    watch = watching(target, variant, kind)
    await watch.ask("a")
    await watch.expect({"a": "1"})
    await target.update(kind, "a", "2")
    await watch.expect({"a": "2"}, refuse="a test refuses everything once")
    await target.update(kind, "b", "2")
    await target.update(kind, "a", "3")
    # A server may send what was there before once more: nobody knows what a refused response leaves behind.
    await watch.expect_at_last("a", "3", never="2")
    await watch.quiet()


@each_variant
@each_type
async def test_a_late_answer_does_not_settle_what_is_newer(target: Target, variant, kind):
    """Two are on their way, and the first one's answer comes after the second one was sent."""
    await target.set({kind: "a"})
    watch = watching(target, variant, kind)
    await watch.ask("a")
    first = await watch.client.read(kind)
    await target.update(kind, "a", "2")
    await watch.client.ack(first)
    await watch.expect({"a": "2"})
    await watch.quiet()


@pytest.mark.parametrize("variant", DELTA, ids=str)
@each_type
async def test_a_stale_nonce_does_not_hide_a_subscription(target: Target, variant, kind):
    """ "Incremental xDS": what a request subscribes to counts whatever its nonce is."""
    await target.set({kind: "ab"})
    watch = watching(target, variant, kind)
    await watch.ask("a")
    await watch.expect({"a": "1"})
    await watch.client.ask(kind, "b", response_nonce="long ago")
    await watch.expect({"b": "1"})
    await watch.quiet()


@pytest.mark.parametrize("variant", [each for each in VARIANTS if not each.delta], ids=str)
@each_type
async def test_a_request_with_a_stale_nonce_is_ignored(target: Target, variant, kind):
    """State of the world, "ACK and NACK": a request whose nonce is not the last one's was made in ignorance of it."""
    await target.set({kind: "ab"})
    watch = watching(target, variant, kind)
    await watch.ask("a")
    await watch.expect({"a": "1"})
    await watch.client.write(kind, resource_names=["b"], version_info="0", response_nonce="long ago")
    await target.update(kind, "b", "2")
    await watch.quiet()
    await target.update(kind, "a", "2")
    await watch.expect({"a": "2"})


@each_variant
@each_type
async def test_two_clients_have_nothing_to_do_with_each_other(target: Target, variant, kind):
    await target.set({kind: "ab"})
    one, two = watching(target, variant, kind), watching(target, variant, kind)
    await one.ask("a")
    await two.ask("b")
    await one.expect({"a": "1"})
    await two.expect({"b": "1"})
    await target.update(kind, "a", "2")
    await one.expect({"a": "2"})
    await target.update(kind, "b", "2")
    await two.expect({"b": "2"})
    await one.quiet()
    await two.quiet()


@pytest.mark.parametrize("variant", SEPARATE, ids=str)
@each_type
async def test_a_service_of_one_type_needs_no_type_in_the_request(target: Target, variant, kind):
    await target.set({kind: "a"})
    watch = watching(target, variant, kind)
    names = {"resource_names_subscribe" if variant.delta else "resource_names": ["a"]}
    await watch.client.write("", on=kind, **names)
    answer = await watch.client.read(kind)
    assert answer.names == {"a"}


@pytest.mark.parametrize("variant", AGGREGATED, ids=str)
async def test_the_aggregated_service_ends_a_stream_without_a_type(target: Target, variant):
    if not target.exact:
        pytest.skip("what a server does then is its own affair")
    client = target.client(variant)
    await client.write("")
    assert await client.failure("") == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("variant", SEPARATE, ids=str)
async def test_a_service_of_one_type_serves_no_other(target: Target, variant):
    if not target.exact:
        pytest.skip("what a server does then is its own affair")
    client = target.client(variant)
    await client.write(EDS, on=CDS)
    assert await client.failure(CDS) == grpc.StatusCode.INVALID_ARGUMENT
