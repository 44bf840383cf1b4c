"""The etcd client on a real etcd: one revision per list, typed errors, users, TLS, several members."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from registry.etcd import (
    AuthFailed,
    Compacted,
    Compare,
    DeadlineExceeded,
    Delete,
    EtcdClient,
    EtcdConfig,
    EtcdError,
    FutureRevision,
    Get,
    LeaseNotFound,
    PermissionDenied,
    Put,
    Result,
    Target,
    TlsFilesUnreadable,
    TooLarge,
    Unavailable,
    absent,
    unchanged,
)
from tests.support.etcd import Etcd, EtcdCluster, Tls
from tests.support.following import following
from tests.support.processes import free_port
from tests.support.waiting import eventually

DATA = Path(__file__).parent / "data"
TLS = Tls(DATA / "ca.pem", DATA / "etcd.pem", DATA / "etcd-key.pem")


@pytest.fixture
async def client(etcd: Etcd) -> AsyncIterator[EtcdClient]:
    async with EtcdClient(EtcdConfig((etcd.endpoint,))) as client:
        yield client


async def test_put_get_delete(client: EtcdClient) -> None:
    revision = await client.put("/a/ä", b"\x00\xff")
    entry = await client.get("/a/ä")
    assert entry is not None
    assert (entry.key, entry.value, entry.mod_revision, entry.version) == ("/a/ä", b"\x00\xff", revision, 1)
    assert await client.delete("/a/ä") == revision + 1
    assert await client.get("/a/ä") is None


async def test_a_list_of_10000_keys_is_of_one_revision_while_they_change(client: EtcdClient) -> None:
    for start in range(0, 10_000, 100):
        await client.transact((), [Put(f"/many/{number:05}", b"1") for number in range(start, start + 100)])
    await client.put("/manz", b"not under the prefix")

    async def change() -> None:
        # Each revision moves one key from the front to behind the end, so that a list over several revisions would
        # not see 10,000 keys.
        for number in range(200):
            await client.transact((), [Delete(f"/many/{number:05}"), Put(f"/many/{10_000 + number:05}", b"2")])

    writer = asyncio.create_task(change())
    while not writer.done():
        listing = await client.list("/many/")
        assert len(listing.entries) == 10_000
        assert max(entry.mod_revision for entry in listing.entries) <= listing.revision
        keys = [entry.key for entry in listing.entries]
        assert keys == sorted(keys)
    await writer
    started = time.monotonic()
    await client.list("/many/")
    assert time.monotonic() - started < 2


async def test_transactions_compare_and_do_one_branch(client: EtcdClient) -> None:
    made = await client.transact([absent("/t/a")], [Put("/t/a", b"1"), Get("/t/a")])
    assert made.succeeded
    assert made.results[1].entries[0].value == b"1"
    again = await client.transact([absent("/t/a")], [Put("/t/a", b"2")], [Get("/t/", prefix=True)])
    assert not again.succeeded
    assert [entry.value for entry in again.results[0].entries] == [b"1"]
    assert (await client.transact([unchanged("/t/a", made.revision)], [Delete("/t/", prefix=True)])).results[
        0
    ].deleted == 1
    assert (await client.transact([unchanged("/t/a", 0)], ())).succeeded
    await client.put("/t/b", b"5")
    for target, value, result in (
        (Target.VALUE, b"4", Result.GREATER),
        (Target.VERSION, 1, Result.EQUAL),
        (Target.LEASE, 0, Result.EQUAL),
        (Target.CREATE_REVISION, 1, Result.NOT_EQUAL),
        (Target.MOD_REVISION, 10_000, Result.LESS),
    ):
        assert (await client.transact([Compare("/t/b", target, value, result)], ())).succeeded, target


async def test_etcds_errors_have_types(client: EtcdClient, etcd: Etcd) -> None:
    revision = await client.put("/e", b"1")
    await client.put("/e", b"2")
    last = await client.put("/e", b"3")
    await asyncio.to_thread(etcd.ctl, "compact", str(last))
    with pytest.raises(Compacted, match=etcd.endpoint):
        await client.list("/e", revision=revision)
    with pytest.raises(Compacted) as compacted:
        async with client.watch("/e", revision) as watch:
            await watch.next()
    assert compacted.value.compact_revision == last
    with pytest.raises(FutureRevision):
        await client.list("/e", revision=last + 10)
    with pytest.raises(LeaseNotFound):
        await client.put("/e", b"", lease=12345)
    for call in (client.keep_alive, client.revoke, client.time_to_live):
        with pytest.raises(LeaseNotFound):
            await call(12345)
    with pytest.raises(TooLarge):
        await client.transact((), [Put(f"/e/{number}", b"") for number in range(129)])
    with pytest.raises(TooLarge):
        await client.put("/e", bytes(2_000_000))
    with pytest.raises(EtcdError, match="duplicate key"):
        await client.transact((), [Put("/e", b""), Put("/e", b"")])


async def test_nobody_there_is_unavailable_in_time_and_was_not_sent() -> None:
    address = f"127.0.0.1:{free_port()}"
    async with EtcdClient(EtcdConfig((address,), timeout=1)) as client:
        started = time.monotonic()
        with pytest.raises(Unavailable, match=address) as error:
            await client.put("/a", b"")
        assert not error.value.sent
        assert time.monotonic() - started < 3


@pytest.mark.scenario
async def test_a_frozen_etcd_is_a_missed_deadline_and_a_write_is_not_repeated(client: EtcdClient, etcd: Etcd) -> None:
    """SIGSTOP, a write that times out, SIGCONT; waits until etcd answers, and finds the write done once at most."""
    await client.put("/a", b"1")
    etcd.freeze()
    with pytest.raises(DeadlineExceeded) as error:
        await client.put("/a", b"2", timeout=0.5)
    assert error.value.sent
    etcd.thaw()
    entry = await client.get("/a")
    assert entry is not None
    assert entry.version <= 2


async def test_a_closed_client_says_so() -> None:
    client = EtcdClient()
    with pytest.raises(Unavailable, match="closed"):
        await client.get("/a")


@pytest.mark.scenario
async def test_a_frozen_member_is_left_for_another(tmp_path: Path) -> None:
    """The first of three members is frozen; waits for calls to be answered by the others within their deadline."""
    cluster = await asyncio.to_thread(EtcdCluster, tmp_path)
    try:
        leader = await asyncio.to_thread(cluster.leader)
        follower = (leader + 1) % 3
        order = (
            cluster.endpoints[follower],
            *(point for point in cluster.endpoints if point != cluster.endpoints[follower]),
        )
        async with EtcdClient(EtcdConfig(order)) as client:
            await client.put("/a", b"1")
            cluster.freeze(follower)
            entry = await client.get("/a")
            assert entry is not None
            await client.put("/a", b"2")
    finally:
        await asyncio.to_thread(cluster.close)


async def enable_users(etcd: Etcd) -> None:
    for command in (
        "user add root:secret",
        "user grant-role root root",
        "user add monitor:pass",
        "role add fleet",
        "role grant-permission fleet --prefix=true readwrite /fleet/",
        "user grant-role monitor fleet",
        "auth enable",
    ):
        await asyncio.to_thread(etcd.ctl, *command.split())


@pytest.mark.scenario
async def test_users_and_tokens_that_expire(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """etcd with users and tokens of one second. Waits for tokens to expire unused, and for calls and watches to go on
    with new ones; etcd is restarted too, which forgets all tokens."""
    etcd = await asyncio.to_thread(Etcd, tmp_path, "--auth-token-ttl", "1")
    try:
        await enable_users(etcd)
        config = EtcdConfig((etcd.endpoint,), user="monitor", password="pass")
        async with EtcdClient(config) as client, following(client, "/fleet/") as followed:
            await client.put("/fleet/a", b"1")
            await eventually(lambda: followed.state, "the first key")
            await expiry()
            # Many at once find it expired; all of them go on, with one new token.
            with caplog.at_level("INFO", logger="registry.etcd.auth"):
                await asyncio.gather(*(client.put(f"/fleet/{index}", b"1") for index in range(20)))
            assert [record.message for record in caplog.records if record.name == "registry.etcd.auth"] == [
                "etcd no longer takes our token; asking for another"
            ]
            await eventually(lambda: len(followed.state) == 21, "all keys")
            await expiry()
            async with following(client, "/fleet/") as late:
                await eventually(lambda: late.snapshots, "a follower that begins with an expired token")
            await expiry()
            with pytest.raises(PermissionDenied):
                async with client.watch("/fleet/", 1):
                    pass
            async with client.watch("/fleet/", 1) as watch:
                assert (await watch.next()).events
            await asyncio.to_thread(etcd.kill)
            await asyncio.to_thread(etcd.restart, wait=False)
            await eventually(lambda: answers(client), "etcd's return")
            await client.put("/fleet/z", b"1")
            await eventually(lambda: "/fleet/z" in followed.state, "the key after the restart")
            lease = await client.grant(5)
            assert (await client.keep_alive(lease.id)).ttl == 5
            with pytest.raises(PermissionDenied):
                await client.put("/elsewhere", b"")
            assert followed.snapshots == 1
        async with EtcdClient(EtcdConfig((etcd.endpoint,), user="monitor", password="wrong")) as client:
            with pytest.raises(AuthFailed, match="authentication failed"):
                await client.get("/fleet/a")
        async with EtcdClient(EtcdConfig((etcd.endpoint,))) as client:
            with pytest.raises(AuthFailed, match="user name is empty"):
                await client.get("/fleet/a")
            with pytest.raises(EtcdError):
                async with client.watch("/fleet/", 1) as watch:
                    await watch.next()
    finally:
        await asyncio.to_thread(etcd.close)


async def expiry() -> None:
    passed = time.monotonic()
    await eventually(lambda: time.monotonic() - passed > 2.5, "a token of one second to expire")


async def answers(client: EtcdClient) -> bool:
    try:
        await client.get("/fleet/a")
    except Unavailable:
        return False
    return True


async def test_tls_with_a_client_certificate(tmp_path: Path) -> None:
    etcd = await asyncio.to_thread(Etcd, tmp_path, tls=TLS)
    try:
        ours = EtcdConfig((f"https://{etcd.endpoint}",), ca_cert=TLS.ca_cert, cert=TLS.cert, key=TLS.key)
        async with EtcdClient(ours) as client:
            revision = await client.put("/a", b"1")
            async with client.watch("/a", revision) as watch:
                assert (await watch.next()).events[0].value == b"1"
        stranger = EtcdConfig((etcd.endpoint,), ca_cert=TLS.ca_cert, timeout=1)
        plain = EtcdConfig((etcd.endpoint,), timeout=1)
        for config in (stranger, plain):
            async with EtcdClient(config) as client:
                with pytest.raises(Unavailable):
                    await client.get("/a")
    finally:
        await asyncio.to_thread(etcd.close)


async def test_tls_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(TlsFilesUnreadable, match=r"nowhere\.pem can't be read: No such file"):
        async with EtcdClient(EtcdConfig(ca_cert=tmp_path / "nowhere.pem")):
            pass


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"endpoints": ()}, "endpoints"),
        ({"endpoints": ("localhost",)}, "endpoints"),
        ({"endpoints": ("localhost:0",)}, "endpoints"),
        ({"endpoints": ("http://a:1", "https://b:1")}, "endpoints"),
        ({"endpoints": ("http://a:1",), "ca_cert": TLS.ca_cert}, "ca_cert"),
        ({"cert": TLS.cert}, "cert"),
        ({"cert": TLS.cert, "key": TLS.key}, "cert"),
        ({"user": "me"}, "user"),
        ({"timeout": 0.0}, "timeout"),
    ],
)
def test_a_config_that_cannot_work_is_refused(arguments: dict[str, object], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}"):
        EtcdConfig(**arguments)


def test_endpoints_may_have_a_scheme_or_none() -> None:
    config = EtcdConfig(("https://a:1", "b:2", "[::1]:3"))
    assert config.tls
    assert config.addresses == ("a:1", "b:2", "[::1]:3")
    assert not EtcdConfig(("http://a:1/", "b:2")).tls
    assert "secret" not in repr(EtcdConfig(user="me", password="secret"))
