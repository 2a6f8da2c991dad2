"""Whatever is sent under keys, and whatever befalls it, each key takes effect at most once."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine

from datapatterns.cqrs import CommandContext, Commands, Executed
from datapatterns.errors import (
    ConditionConflictError,
    IdempotencyKeyReusedError,
    OutcomeUnknownError,
)
from datapatterns.event_sourcing import ANY, EventStore, NewEvent, Retry, StreamId
from datapatterns.testing.faults import FaultProxy
from tests.fixtures.lost_commits import Loss, Network

pytestmark = pytest.mark.postgres

store = EventStore()
APPLIED, NOT_APPLIED = Loss(happens=True), Loss(happens=False)


class RefusedError(Exception):
    """By the domain."""


class KilledError(BaseException):
    """Nothing of the executor's own runs after it."""


@dataclass(frozen=True, slots=True)
class Add:
    """A command; what is in it is all that a key is compared by."""

    basket: str
    cents: int


@dataclass(frozen=True)
class Sent:
    """One attempt of a client.

    Attributes:
        conflicts: How often another writer is first.
        breaks: What the handler raises after it has written.
        loss: How the answer to its COMMIT is lost.
        persists: Whether it is tried again within ``execute``.
    """

    key: str
    cents: int
    conflicts: int
    breaks: type[BaseException] | None
    loss: Loss | None
    persists: bool

    def must_raise(self, known: int | None) -> type[BaseException] | None:
        """Return what comes of it, if under its key ``known`` was executed before."""
        if known is not None:
            return None if known == self.cents else IdempotencyKeyReusedError
        if self.conflicts and not self.persists:
            return ConditionConflictError
        if self.breaks is not None:
            return self.breaks
        return OutcomeUnknownError if self.loss and not self.persists else None

    def reaches_commit(self, known: int | None) -> bool:
        """Return whether there is an answer to lose."""
        return self.must_raise(known) in {None, OutcomeUnknownError}


sent = st.builds(
    Sent,
    key=st.sampled_from("abc"),
    cents=st.sampled_from([1, 1, 1, 2]),
    conflicts=st.sampled_from([0, 0, 0, 1, 2]),
    breaks=st.sampled_from([None, None, None, RefusedError, KilledError]),
    loss=st.sampled_from([None, None, APPLIED, NOT_APPLIED]),
    persists=st.booleans(),
)


@dataclass
class Client:
    """Sends commands, and knows what must have come of them."""

    engine: Engine
    network: Network
    category: str = field(default_factory=lambda: f"c{uuid4().hex}")
    effects: dict[str, int] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    now: Sent | None = None

    def __post_init__(self) -> None:
        self.commands = Commands(store)
        self.commands.handles(Add)(self.add)

    def add(self, command: Add, context: CommandContext) -> int:
        now = self.now
        assert now is not None
        added = NewEvent("added", {"cents": command.cents})
        context.append(StreamId(self.category, command.basket), [added], expected_version=ANY)
        if context.attempt <= now.conflicts:
            raise ConditionConflictError("another")
        if now.breaks is not None:
            raise now.breaks
        return command.cents

    def send(self, now: Sent) -> None:
        """Send it, and compare what comes of it with what must."""
        self.now, known = now, self.effects.get(now.key)
        must_raise = now.must_raise(known)
        trap = now.loss.strike(self.network) if now.loss and now.reaches_commit(known) else None
        if must_raise is None:
            done = self.execute(now)
            assert done.repeated is (known is not None)
            assert done.value == self.effects.setdefault(now.key, now.cents)
            assert done.position == self.positions.setdefault(now.key, done.position)
        else:
            with pytest.raises(must_raise):
                self.execute(now)
            if must_raise is OutcomeUnknownError and now.loss is APPLIED:
                self.effects[now.key] = now.cents
        assert trap is None or trap.has_fired

    def execute(self, now: Sent) -> Executed:
        return self.commands.execute(
            self.engine,
            Add(now.key, now.cents),
            idempotency_key=f"{self.category}-{now.key}",
            retry=Retry(attempts=9 if now.persists else 1, delay_seconds=0),
        )

    def happened(self) -> dict[str, list[int]]:
        with self.engine.begin() as conn:
            streams = {key: StreamId(self.category, key) for key in "abc"}
            found = {key: store.read_stream(conn, stream) for key, stream in streams.items()}
        told = {key: [event.data["cents"] for event in events] for key, events in found.items()}
        return {key: cents for key, cents in told.items() if cents}


@pytest.fixture(scope="module")
def broken(module_engine: Engine) -> Iterator[tuple[Engine, Network]]:
    with FaultProxy(module_engine.url) as network:
        far = create_engine(network.url)
        yield far, network
        far.dispose()


@given(st.lists(sent, min_size=1, max_size=12))
def test_each_key_takes_effect_as_often_as_a_dict_would_let_it(
    broken: tuple[Engine, Network], story: list[Sent]
) -> None:
    client = Client(*broken)
    for now in story:
        client.send(now)

    assert client.happened() == {key: [cents] for key, cents in client.effects.items()}
