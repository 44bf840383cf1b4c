"""What `modelplane up` says of other monitors that claim its instances."""

from __future__ import annotations

from modelplane.local.rivals import Rivals
from registry.claims import Claim, encode_claim
from registry.follow import Changes, Connection, Snapshot
from registry.keys import ClaimKey, Keyspace

KEYS = Keyspace("/p/")
OURS = Claim("a", 3, "here", 10, "2026-01-01T00:00:00Z", "127.0.0.1:1")
THEIRS = Claim("b", 4, "there", 10, "2026-01-01T00:00:01Z", "10.0.0.9:8500")


def entries(claim: Claim, name: str = "tfs-0") -> dict[str, bytes]:
    return {KEYS.make(ClaimKey(name)): encode_claim(claim)}


def test_another_monitors_claim_is_told_once() -> None:
    rivals = Rivals(KEYS, ["tfs-0"], lambda claim: claim.host == "here")
    assert rivals.apply(Snapshot(1, entries(OURS))) == []
    assert rivals.apply(Connection(connected=True, detail="")) == []
    (line,) = rivals.apply(Changes(2, entries(THEIRS), frozenset()))
    assert line.startswith(
        "tfs-0 is taken over by the monitor on there (pid 10, since 2026-01-01T00:00:01Z, watching 10.0.0.9:8500); "
    )
    assert rivals.apply(Changes(3, entries(THEIRS), frozenset(), relisted=True)) == []
    assert rivals.apply(Changes(4, entries(OURS), frozenset())) == []
    assert len(rivals.apply(Changes(5, entries(Claim("c", 6, "there")), frozenset()))) == 1


def test_instances_of_others_and_what_cannot_be_read_are_nothing_to_tell() -> None:
    rivals = Rivals(KEYS, ["tfs-0"], lambda _: False)
    assert rivals.apply(Snapshot(1, entries(THEIRS, "tfs-9") | {KEYS.make(ClaimKey("tfs-0")): b"{"})) == []
