"""A command under an idempotency key is executed once, whoever sends it and whatever gets lost."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias
from uuid import uuid4

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.ext.asyncio import AsyncEngine

from datapatterns.cqrs import CommandContext, Commands, Executed
from datapatterns.cqrs.commands import claiming, executing
from datapatterns.event_sourcing import ANY, Retry, StreamId
from datapatterns.testing.interleaving import Explorer, Fault, InterleavingError, Outcome
from tests.fixtures.effort import THOROUGH
from tests.interleavings.basket import PREEMPTIONS, Scanned, store
from tests.interleavings.designs.design import Tasks, is_commit
from tests.interleavings.guards import table_without

pytestmark = pytest.mark.postgres

Send: TypeAlias = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Scan:
    basket: str


class RefusedError(Exception):
    """By the domain, once."""


class Senders:
    """Two send one command under one key; nothing but the key keeps the second from doing it."""

    def __init__(self, gated: Engine | AsyncEngine, plain: Engine) -> None:
        self._gated, self._plain = gated, plain
        self._basket = ""
        self.refusals = self.handled = 0
        self.key: str | None = ""
        self.commands = Commands(store)
        self.commands.handles(Scan)(self._scan)
        self.retry = Retry(delay_seconds=0)

    def tasks(self, refusals: int = 0) -> Tasks:
        self._basket, self.handled, self.refusals = uuid4().hex, 0, refusals
        self.key = None if self.key is None else self._basket
        send: Send = self._send if isinstance(self._gated, Engine) else self._send_async
        return {"one": send, "two": send}

    def _scan(self, command: Scan, context: CommandContext) -> int:
        self.handled += 1
        if self.refusals:
            self.refusals -= 1
            raise RefusedError
        stream = StreamId("basket", command.basket)
        return context.append(stream, [Scanned(1)], expected_version=ANY).version

    def _send(self) -> Executed:
        assert isinstance(self._gated, Engine)
        command = Scan(self._basket)
        return self.commands.execute(
            self._gated, command, idempotency_key=self.key, retry=self.retry
        )

    async def _send_async(self) -> Executed:
        assert isinstance(self._gated, AsyncEngine)
        command = Scan(self._basket)
        return await self.commands.execute_async(
            self._gated, command, idempotency_key=self.key, retry=self.retry
        )

    def happened(self) -> int:
        with self._plain.begin() as conn:
            return len(store.read_stream(conn, StreamId("basket", self._basket)))

    def recorded(self) -> int:
        asked = text("SELECT count(*) FROM datapatterns.command_execution WHERE key = :key")
        with self._plain.begin() as conn:
            return int(conn.execute(asked, {"key": self._basket}).scalar_one())

    def it_happened_once(self, outcome: Outcome) -> None:
        """Whoever was told of it was told the same; an effect and its record are one."""
        told = [one for one in outcome.results.values() if isinstance(one, Executed)]
        happened = self.happened()
        assert happened == self.recorded(), f"{happened} effects, {self.recorded()} recorded"
        assert happened == 1 or (happened == 0 and not told), f"one command, {happened} effects"
        assert len({(one.value, one.position, one.execution_id) for one in told}) <= 1
        assert sum(not one.repeated for one in told) <= 1, "both believe that they did it"

    def both_know(self, outcome: Outcome) -> None:
        self.it_happened_once(outcome)
        assert len(outcome.results) == 2, f"they believe {outcome.errors}"
        assert sum(one.repeated for one in outcome.results.values()) == 1
        assert self.handled == 1, f"handled {self.handled} times"


@pytest.fixture(params=["sync", "async"])
def senders(
    request: pytest.FixtureRequest, gated: Engine, gated_async: AsyncEngine, plain: Engine
) -> Senders:
    return Senders(gated if request.param == "sync" else gated_async, plain)


def test_two_executions_of_one_key_run_the_handler_once(
    explorer: Explorer, senders: Senders
) -> None:
    explored = explorer.explore(
        senders.tasks, invariant=senders.both_know, max_preemptions=PREEMPTIONS
    )

    assert explored.exhausted
    assert explored.blocked_steps


def test_if_the_first_is_refused_the_second_has_its_turn(
    explorer: Explorer, senders: Senders
) -> None:
    def one_was_refused(outcome: Outcome) -> None:
        senders.it_happened_once(outcome)
        assert [type(error) for error in outcome.errors.values()] == [RefusedError]
        assert len(outcome.results) == 1
        assert senders.handled == 2

    explored = explorer.explore(
        partial(senders.tasks, refusals=1),
        invariant=one_was_refused,
        allowed_errors=RefusedError,
        max_preemptions=PREEMPTIONS,
    )

    assert explored.exhausted


def test_a_lost_commit_is_resolved_by_its_key(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    senders = Senders(gated, plain)

    def all_know(outcome: Outcome) -> None:
        senders.it_happened_once(outcome)
        assert len(outcome.results) == 2, f"they believe {outcome.errors}"

    explored = explorer.explore(
        senders.tasks,
        invariant=all_know,
        max_preemptions=PREEMPTIONS - 1,
        crash_at=is_commit,
        faults=[Fault.REQUEST_LOST, Fault.REPLY_LOST],
    )

    assert explored.exhausted


def test_whoever_dies_wherever_leaves_all_of_it_or_nothing(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    senders = Senders(gated, plain)

    def the_other_did_it(outcome: Outcome) -> None:
        senders.it_happened_once(outcome)
        assert len(outcome.results) + len(outcome.crashed) == 2
        assert outcome.results

    explored = explorer.explore(
        senders.tasks,
        invariant=the_other_did_it,
        max_preemptions=PREEMPTIONS - 1,
        crash_at=lambda _: True,
        faults=list(Fault) if THOROUGH else [Fault.CRASH],
    )

    assert explored.exhausted


# -- without a guard ------------------------------------------------------------------------------


@contextmanager
def several_rows_for_a_key(plain: Engine) -> Iterator[None]:
    with table_without(plain, "datapatterns.command_execution", "pk_command_execution"):
        yield
        with plain.begin() as conn:
            conn.exec_driver_sql("TRUNCATE datapatterns.command_execution")


def test_without_a_key_both_would_do_it(explorer: Explorer, gated: Engine, plain: Engine) -> None:
    senders = Senders(gated, plain)
    senders.key = None

    with pytest.raises(InterleavingError, match="2 effects"):
        explorer.explore(senders.tasks, invariant=senders.both_know)


def test_without_the_claim_before_the_handler_both_would_do_it(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    """The primary key is what the second waits for."""
    senders = Senders(gated, plain)

    with (
        several_rows_for_a_key(plain),
        pytest.raises(InterleavingError, match="2 effects"),
    ):
        explorer.explore(senders.tasks, invariant=senders.both_know)


def test_a_record_in_a_transaction_of_its_own_would_tell_of_what_was_never_done(
    explorer: Explorer, gated: Engine, plain: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    senders, noted = Senders(gated, plain), claiming.note_result

    def apart(conn: Any, *args: Any, **how: Any) -> None:  # noqa: ANN401 -- as the guard
        driver = conn.connection.driver_connection
        driver.commit()
        noted(conn, *args, **how)

    monkeypatch.setattr(executing, "note_result", apart)
    with pytest.raises(InterleavingError, match="half way"):
        explorer.explore(
            senders.tasks,
            invariant=senders.it_happened_once,
            crash_at=lambda _: True,
            faults=[Fault.CRASH],
        )


def test_an_unknown_outcome_that_is_taken_for_a_failure_would_do_it_twice(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    """What a client does that has no key, and tries again."""
    senders = Senders(gated, plain)
    senders.key = None

    def tasks() -> Tasks:
        send = senders.tasks()["one"]

        def again_and_again() -> Any:  # noqa: ANN401 -- what came of it
            try:
                return send()
            except Exception:  # noqa: BLE001 -- that is the mistake
                return send()

        return {"client": again_and_again}

    def once(_outcome: Outcome) -> None:
        assert senders.happened() == 1, f"{senders.happened()} effects"

    with pytest.raises(InterleavingError, match="2 effects"):
        explorer.explore(tasks, invariant=once, crash_at=is_commit, faults=[Fault.REPLY_LOST])
