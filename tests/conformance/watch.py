"""What a client of one type is to be sent next, and that nothing else is.

Invariant: `held` is what a client that applies everything holds, by name and version; each `expect` reads what the
protocol says must come next and fails on anything beside it. That nothing more comes is proven by a fence, never by
waiting: something is changed or asked for whose answer must come, and what comes next must be that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tests.conformance.client import ROOTS, Answer, Client, Target
from tests.conformance.state import example, nothing


class Watch:
    """One type on one client's stream."""

    def __init__(self, target: Target, client: Client, type_url: str) -> None:
        self.target = target
        self.client = client
        self.type_url = type_url
        self.wildcard = False
        self.held: dict[str, str] = {}
        self.absent: set[str] = set()
        self.versions: dict[str, str] = {}
        self._nonces: set[str] = set()

    @property
    def full(self) -> bool:
        """Whether each response holds everything that the client is to have. "Resource types and state of the world":
        it does for listeners and clusters, or a client could not see what is gone."""
        return not self.client.variant.delta and self.type_url in ROOTS

    async def ask_for_all(self, *, by_name: bool = False) -> None:
        """Subscribe to the wildcard, in its new form (`*`) or its old one (no name at all)."""
        self.wildcard = True
        await self.client.ask(self.type_url, *(["*"] if by_name else []))

    async def ask(self, *names: str, absent: Iterable[str] = ()) -> None:
        """Subscribe to these as well; `absent` are those among them that the server does not have."""
        self.absent |= set(absent)
        await self.client.ask(self.type_url, *names)

    async def drop(self, *names: str) -> None:
        """Unsubscribe, and forget, as clients do. The server has read it when this returns: a change that is made
        after it comes on another connection, which could overtake it."""
        await self.client.drop(self.type_url, *names)
        self.forget(*names)
        await self.quiet()

    async def stop_asking_for_all(self, *kept: str) -> None:
        """Unsubscribe from the wildcard in its new form, and forget what is not asked for by name."""
        fence = await self._new_fence()
        await self.expect({fence: "1"})
        self.wildcard = False
        await self.client.drop(self.type_url, "*")
        self.forget(*self.held.keys() - set(kept))
        await self.ask(fence)
        await self.expect({fence: "1"})

    def forget(self, *names: str) -> None:
        for name in names:
            self.held.pop(name, None)
            self.absent.discard(name)

    async def expect(
        self, changed: Mapping[str, str] | None = None, gone: Iterable[str] = (), *, refuse: str = ""
    ) -> Answer:
        """The next thing to come is these resources (name -> version), and that these are gone."""
        changed, left = dict(changed or {}), set(gone)
        self.held = {name: version for name, version in {**self.held, **changed}.items() if name not in left}
        missing = set(changed)
        while True:
            answer = await self.client.read(self.type_url)
            assert answer.nonce not in self._nonces, "a nonce is used once"
            self._nonces.add(answer.nonce)
            there = self._check(answer, changed, left)
            self.absent -= there
            self.versions.update(answer.versions)
            await (self.client.refuse(answer, refuse) if refuse else self.client.ack(answer))
            missing -= there
            left -= answer.removed
            if not missing and (not left or not self.client.variant.delta):
                return answer

    def _check(self, answer: Answer, changed: Mapping[str, str], gone: set[str]) -> set[str]:
        """The names of which there is something in the response: a state-of-the-world server may say of one that it
        has nothing by an empty resource, since it has no other way."""
        empty = {name for name in self.absent & answer.names if answer.resources[name] == nothing(self.type_url, name)}
        there = answer.names - empty
        assert not empty or not (self.client.variant.delta or self.full)
        for name in there & self.held.keys():
            want = example(self.type_url, name, self.held[name]).value
            assert answer.resources[name] == want, f"{name} is not as it was set in version {self.held[name]}"
        if self.client.variant.delta:
            assert there <= changed.keys(), "only what changed"
            assert answer.removed <= gone, "only what is gone"
        elif self.full:
            assert there == self.held.keys(), "everything that the client is to have, and nothing else"
        else:
            assert there <= self.held.keys(), "nothing that was not asked for"
            if self.target.exact:
                assert there <= changed.keys(), "only what changed"
        return there

    async def expect_told_absent(self, *names: str) -> None:
        """The client is told that there is nothing of these names, in the variants that can say so."""
        if self.client.variant.delta:
            await self.expect(gone=names)
        elif self.full:
            await self.expect()

    async def expect_gone(self, *names: str) -> None:
        """The client is told that these are gone, in the variants that can say so; in the others it keeps them."""
        if self.client.variant.delta or self.full:
            await self.expect(gone=names)
            return
        self.forget(*names)
        self.absent |= set(names)

    async def expect_at_last(self, name: str, version: str, *, never: str = "") -> int:
        """Responses come until one has this version, each of them with nothing but `name` that is new, and none with
        the version `never`. How many."""
        want = example(self.type_url, name, version).value
        for count in range(1, 1000):
            answer = await self.client.get(self.type_url)
            assert name in answer.names
            if never:
                assert answer.resources[name] != example(self.type_url, name, never).value
            if self.full:
                assert answer.names == self.held.keys()
            elif self.client.variant.delta or self.target.exact:
                assert answer.names == {name}
            if answer.resources[name] == want:
                self.held[name] = version
                return count
        raise AssertionError(f"{name} never arrived in version {version}")

    async def quiet(self) -> None:
        """Nothing more comes: the next thing is the fence. A wildcard client's fence is twice a new resource, since
        the first may overtake an ACK that is on its way; who asks by name asks for one, which no ACK can overtake."""
        if self.wildcard:
            for _ in range(2):
                await self.expect({await self._new_fence(): "1"})
            return
        name = await self._new_fence()
        await self.ask(name)
        await self.expect({name: "1"})

    async def _new_fence(self) -> str:
        name = self.target.fresh_name("fence")
        await self.target.add(self.type_url, name, "1")
        return name
