"""A key is executed once, however often it is sent, by whom, and whatever gets lost."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from threading import Barrier, Thread
from typing import Any

import msgspec
import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import create_async_engine

from datapatterns.cqrs import (
    CommandContext,
    CommandHandlers,
    Commands,
    Executed,
    forget_executions,
)
from datapatterns.errors import (
    CommandInvalidError,
    CommandResultError,
    ExecutionUnfinishedError,
    IdempotencyKeyReusedError,
    OutcomeUnknownError,
)
from datapatterns.event_sourcing import EventStore, Retry
from datapatterns.outcomes import find_unknown_outcome
from tests.fixtures.blocking import until_blocked_by
from tests.fixtures.cancelling import Strike, every_await
from tests.fixtures.lost_commits import LosingClock, Loss, Network
from tests.fixtures.orders import (
    Execute,
    Place,
    Receipt,
    Shop,
    SoldOutError,
    receipts,
    recorded,
    store,
)

pytestmark = pytest.mark.postgres


# The same again ------------------------------------------------------------------------------


def test_the_same_key_again_gets_the_first_result_and_its_token(
    engine: Engine, shop: Shop, execute: Execute
) -> None:
    first = execute(Place("a", quantity=3), idempotency_key="k", metadata={"by": "ann"})
    execute(Place("b"))

    again = execute(Place("a", quantity=3), idempotency_key="k", metadata={"by": "bob"})

    assert (first.repeated, again.repeated) == (False, True)
    assert (again.value, again.position) == (first.value, first.position)
    assert again.execution_id == first.execution_id
    assert shop.decided == ["a", "b"]
    assert receipts(engine) == [("a", 3), ("b", 4)]


def test_another_process_recognises_it(engine: Engine, execute: Execute) -> None:
    execute(Place("a"), idempotency_key="k")

    again = execute(Place("a"), by=Shop().commands, idempotency_key="k")

    assert again.repeated
    assert again.value == Receipt("a", 1)
    assert receipts(engine) == [("a", 1)]


def test_without_a_key_the_same_command_is_another_one(engine: Engine, execute: Execute) -> None:
    for _ in range(2):
        execute(Place("a"))

    assert receipts(engine) == [("a", 1), ("a", 2)]


@dataclass(frozen=True, slots=True)
class Cancel:
    order: str


def test_a_key_with_other_contents_or_another_command_is_refused(
    engine: Engine, shop: Shop, execute: Execute
) -> None:
    @shop.commands.handles(Cancel)
    def _(command: Cancel, context: CommandContext) -> None:
        raise NotImplementedError

    execute(Place("a"), idempotency_key="k")

    with pytest.raises(IdempotencyKeyReusedError, match="with other contents") as reused:
        execute(Place("a", quantity=2), idempotency_key="k")
    assert (reused.value.key, reused.value.executed) == ("k", "Place")
    with pytest.raises(IdempotencyKeyReusedError, match="for command Place"):
        execute(Cancel("a"), idempotency_key="k")
    assert receipts(engine) == [("a", 1)]


@dataclass(frozen=True, slots=True)
class Weigh:
    kilos: float


def test_a_retry_may_write_the_same_number_in_another_way(execute: Execute) -> None:
    """As JSON does of clients that know one kind of numbers: the handler gets the same."""
    commands = Commands(EventStore(), CommandHandlers())

    @commands.handles(Weigh)
    def _(command: Weigh, _context: CommandContext) -> float:
        return command.kilos

    execute(Weigh(1.0), by=commands, idempotency_key="k")

    assert execute(Weigh(1), by=commands, idempotency_key="k").repeated
    with pytest.raises(IdempotencyKeyReusedError):
        execute(Weigh(1.5), by=commands, idempotency_key="k")


@pytest.mark.parametrize("key", ["", "a\nb", "a\0b", "\ud800", "x" * 256, "é" * 128, 7, b"k"])
def test_a_key_that_cannot_be_one_is_what_is_wrong_with_the_request(
    execute: Execute, key: str
) -> None:
    with pytest.raises(CommandInvalidError) as invalid:
        execute(Place("a"), idempotency_key=key)

    assert [field for field, _ in invalid.value.problems] == ["idempotency_key"]


@pytest.mark.parametrize("key", ["x" * 255, "é" * 127, "a:b%s'\"{}", "%(key)s", ":key", "日本"])
def test_any_other_key_is_one(execute: Execute, key: str) -> None:
    assert not execute(Place("a"), idempotency_key=key).repeated
    assert execute(Place("a"), idempotency_key=key).repeated


def test_contents_are_the_same_whatever_the_order_of_what_has_none(execute: Execute) -> None:
    class Tag(msgspec.Struct, frozen=True):
        names: frozenset[str]
        by_name: dict[str, int]

    commands = Commands(store)
    commands.handles(Tag)(lambda _command, _context: None)
    names = [str(n) for n in range(50)]

    execute(Tag(frozenset(names), dict.fromkeys(names, 1)), by=commands, idempotency_key="k")
    other = Tag(frozenset(reversed(names)), dict.fromkeys(reversed(names), 1))

    assert execute(other, by=commands, idempotency_key="k").repeated


# Results -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "result",
    [None, 0, "", "日本 'x' %s :y \\", 1.5, True, [1, [2]], {"a": {"b": None}}, "x" * 65_534],
)
def test_a_result_comes_back_as_it_was(execute: Execute, result: object) -> None:
    commands = Commands(store)
    commands.handles(Cancel)(lambda _command, _context: result)

    first, again = (execute(Cancel("a"), by=commands, idempotency_key="k") for _ in range(2))

    assert first.value == again.value == result
    assert type(first.value) is type(again.value)


def test_a_result_of_an_older_release_is_read_or_refused_and_its_contents_are_not_compared(
    execute: Execute,
) -> None:
    def release(version: int, returned: Any) -> Commands:  # noqa: ANN401 -- a type hint
        commands = Commands(store, CommandHandlers())

        def cancel(_command: Cancel, _context: CommandContext) -> object:
            return {"order": "a", "taken": 1}

        cancel.__annotations__["return"] = returned
        commands.handles(Cancel, version=version)(cancel)
        return commands

    execute(Cancel("a"), by=release(1, dict[str, Any]), idempotency_key="k")

    newer = execute(Cancel("b"), by=release(2, Receipt), idempotency_key="k")
    assert (newer.value, newer.repeated) == (Receipt("a", 1), True)
    with pytest.raises(CommandResultError, match="what was stored before"):
        execute(Cancel("b"), by=release(2, list[int]), idempotency_key="k")


# Validation ----------------------------------------------------------------------------------


def test_what_was_executed_while_it_was_valid_is_repeated_when_it_is_not(
    engine: Engine, execute: Execute
) -> None:
    """As with a date that has passed: the retry must learn what came of the command."""
    problems: dict[str, str] = {}
    commands, shop = Commands(store), Shop()
    commands.handles(Place, validate=lambda _: problems)(shop.place)

    execute(Place("a"), by=commands, idempotency_key="k")
    problems["order"] = "is too late"

    assert execute(Place("a"), by=commands, idempotency_key="k").repeated
    for key in ("other", None):
        with pytest.raises(CommandInvalidError, match="order: is too late") as invalid:
            execute(Place("a"), by=commands, idempotency_key=key)
        assert invalid.value.problems == (("order", "is too late"),)
    assert recorded(engine) == ["k"]
    assert shop.decided == ["a"]


# Two at once ---------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize("refused", [False, True])
def test_who_sends_a_key_that_is_being_executed_waits_and_gets_its_result_or_its_turn(
    engine: Engine,
    shop: Shop,
    execute: Execute,
    level: str,
    refused: bool,  # noqa: FBT001 -- a parameter of the test
) -> None:
    second = Shop()
    strict = engine.execution_options(isolation_level=level)

    def send() -> Executed:
        return execute(Place("a"), by=second.commands, at=strict, idempotency_key="k")

    done: list[Executed] = []
    thread = Thread(target=lambda: done.append(send()))

    def first(command: Place, context: CommandContext) -> Receipt:
        thread.start()
        until_blocked_by(engine, context.conn)
        if refused:
            raise SoldOutError
        return shop.place(command, context)

    commands = Commands(store)
    commands.handles(Place)(first)
    try:
        commands.execute(engine, Place("a"), idempotency_key="k")
    except SoldOutError:
        assert refused
    thread.join(60)

    [received] = done
    assert received.value == Receipt("a", 1)
    assert received.repeated is not refused
    assert second.decided == (["a"] if refused else [])
    assert receipts(engine) == [("a", 1)]


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ"])
def test_many_senders_of_few_keys_have_each_executed_once(
    engine: Engine, shop: Shop, level: str
) -> None:
    """They are in each other's way, too: all orders are of one product."""
    strict = engine.execution_options(isolation_level=level)
    patient, keys, ready = Retry(attempts=1_000, timeout_seconds=60), range(6), Barrier(8)

    def send_all(seed: int) -> dict[int, Executed]:
        ready.wait(timeout=30)
        mixed = Random(seed).sample(keys, len(keys))  # noqa: S311 -- to be repeated
        return {
            key: shop.commands.execute(
                strict, Place(str(key)), idempotency_key=str(key), retry=patient
            )
            for key in mixed
        }

    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(send_all, range(8)))

    assert sorted(taken for _, taken in receipts(engine)) == [1, 2, 3, 4, 5, 6]
    for key in keys:
        of_key = [each[key] for each in told]
        assert len({(one.value, one.position, one.execution_id) for one in of_key}) == 1
        assert sum(not one.repeated for one in of_key) == 1


def test_who_does_not_want_to_wait_says_so_to_the_server(engine: Engine, shop: Shop) -> None:
    impatient = create_engine(engine.url, connect_args={"options": "-c lock_timeout=10ms"})

    def send() -> Executed:
        return Shop().commands.execute(impatient, Place("a"), idempotency_key="k")

    def meanwhile() -> None:
        with ThreadPoolExecutor() as pool, pytest.raises(OperationalError, match="lock timeout"):
            pool.submit(send).result(timeout=60)

    shop.meanwhile = meanwhile
    shop.commands.execute(engine, Place("a"), idempotency_key="k")
    impatient.dispose()

    assert receipts(engine) == [("a", 1)]


# Answers that are lost -----------------------------------------------------------------------


def test_a_commit_without_an_answer_is_found_out_about(
    engine: Engine, shop: Shop, execute: Execute, network: Network, far: Engine, loss: Loss
) -> None:
    loss.strike(network)

    done = execute(Place("a"), at=far, idempotency_key="k")

    assert (done.value, done.repeated, done.attempts) == (Receipt("a", 1), False, 2)
    assert shop.decided == (["a"] if loss.happens else ["a", "a"])
    assert receipts(engine) == [("a", 1)]


def test_without_a_key_it_stays_unknown(
    engine: Engine, shop: Shop, execute: Execute, network: Network, far: Engine, loss: Loss
) -> None:
    loss.strike(network)

    with pytest.raises(OutcomeUnknownError, match="command Place"):
        execute(Place("a"), at=far)

    assert shop.decided == ["a"]
    assert receipts(engine) == ([("a", 1)] if loss.happens else [])


def test_what_stays_unknown_is_told_with_the_key_and_the_key_tells_it_later(
    engine: Engine, execute: Execute, network: Network, far: Engine, loss: Loss
) -> None:
    loss.strike(network)
    with pytest.raises(OutcomeUnknownError) as unknown:
        execute(Place("a"), at=far, idempotency_key="k", retry=Retry(attempts=1))
    assert unknown.value.ids == ("k",)

    later = execute(Place("a"), idempotency_key="k")

    assert later.repeated is loss.happens
    assert receipts(engine) == [("a", 1)]


def test_it_asks_as_long_as_it_may(engine: Engine, network: Network, far: Engine) -> None:
    """Each answer to a COMMIT is lost, of those that have nothing to commit, too."""
    shop = Shop()
    object.__setattr__(shop.store, "clock", LosingClock(Loss(happens=True), network))

    with engine.begin() as conn:
        conn.execute(text('CREATE TABLE receipt ("order" text, taken bigint)'))
    done = shop.commands.execute(far, Place("a"), idempotency_key="k")

    assert (done.value, done.attempts) == (Receipt("a", 1), 2)
    assert shop.decided == ["a"]


def test_a_refusal_after_a_lost_commit_that_did_not_happen_is_definite(
    engine: Engine, shop: Shop, execute: Execute, network: Network, far: Engine
) -> None:
    Loss(happens=False).strike(network)
    tries: list[int] = []

    def meanwhile() -> None:
        tries.append(1)
        if len(tries) == 2:
            raise SoldOutError

    shop.meanwhile = meanwhile
    with pytest.raises(SoldOutError):
        execute(Place("a"), at=far, idempotency_key="k")
    assert (receipts(engine), recorded(engine)) == ([], [])


# What the table holds ------------------------------------------------------------------------


def test_a_handler_that_commits_in_sql_is_told_of_when_it_was_cut_off(
    execute: Execute,
) -> None:
    def handler(_command: Cancel, context: CommandContext) -> None:
        context.conn.exec_driver_sql("COMMIT")
        raise SoldOutError

    commands = Commands(store)
    commands.handles(Cancel)(handler)
    with pytest.raises(SoldOutError):
        execute(Cancel("a"), by=commands, idempotency_key="k")

    with pytest.raises(ExecutionUnfinishedError, match="'k' was committed half way"):
        execute(Cancel("a"), by=commands, idempotency_key="k")


@pytest.mark.parametrize(
    "change",
    [
        "result = NULL",
        "position = NULL",
        "position = -1",
        "key = ''",
        "key = repeat('x', 256)",
        "digest = 'x'",
        "version = 0",
        "command = ''",
        "tenant = repeat('x', 501)",
        "result = to_json(repeat('x', 70000))",
    ],
)
def test_the_database_keeps_what_is_no_execution_out(
    engine: Engine, shop: Shop, change: str
) -> None:
    shop.commands.execute(engine, Place("a"), idempotency_key="k")

    with engine.connect() as conn, pytest.raises(IntegrityError, match="ck_command_execution"):
        conn.exec_driver_sql(f"UPDATE datapatterns.command_execution SET {change}")  # noqa: S608 -- ours


def test_old_executions_are_forgotten_in_batches(engine: Engine, execute: Execute) -> None:
    for number in range(5):
        execute(Place("a"), idempotency_key=str(number))
    with engine.begin() as conn:
        conn.exec_driver_sql(
            "UPDATE datapatterns.command_execution SET executed_at = now() - interval '3 days'"
            " WHERE key < '3'"
        )

    def forget(*, limit: int = 2, dry_run: bool = False) -> int:
        age = timedelta(days=2)
        with engine.begin() as conn:
            return forget_executions(conn, store, older_than=age, limit=limit, dry_run=dry_run)

    assert (forget(dry_run=True), forget(limit=9, dry_run=True)) == (2, 3)
    assert recorded(engine) == list("01234")
    assert [forget(), forget(), forget()] == [2, 1, 0]
    assert recorded(engine) == ["3", "4"]
    assert not execute(Place("a"), idempotency_key="0").repeated
    with pytest.raises(ValueError, match="at least 1"):
        forget(limit=0)
    with engine.begin() as conn, pytest.raises(ValueError, match="in flight"):
        forget_executions(conn, store, older_than=timedelta(0))


def test_a_key_that_is_forgotten_while_somebody_looks_is_executed(
    engine: Engine, shop: Shop
) -> None:
    """Between the claim that finds it taken and the look at it."""
    shop.commands.execute(engine, Place("a"), idempotency_key="k")
    looked: list[str] = []

    @event.listens_for(engine, "after_cursor_execute")
    def _(_c: object, _cursor: object, statement: str, *_more: object) -> None:
        if statement.startswith("INSERT INTO datapatterns.command_execution") and not looked:
            looked.append(statement)
            with engine.begin() as conn:
                conn.exec_driver_sql("DELETE FROM datapatterns.command_execution")

    done = shop.commands.execute(engine, Place("a"), idempotency_key="k")

    assert not done.repeated
    assert recorded(engine) == ["k"]


def test_a_key_costs_two_statements(engine: Engine, shop: Shop) -> None:
    def statements(key: str | None) -> int:
        seen: list[str] = []

        def note(_c: object, _cursor: object, statement: str, *_: object) -> None:
            seen.append(statement)

        event.listen(engine, "before_cursor_execute", note)
        shop.commands.execute(engine, Place("a"), idempotency_key=key)
        event.remove(engine, "before_cursor_execute", note)
        return len(seen)

    assert statements("first") == statements(None) + 2
    assert statements("first") == 2


# Cancelled -----------------------------------------------------------------------------------


def test_a_cancellation_at_any_await_is_undone_by_the_key(engine: Engine, shop: Shop) -> None:
    """What may have been committed says so, and its repetition finds out."""
    unknown = 0

    async def act(strike: Strike, key: str) -> None:
        nonlocal unknown
        far = create_async_engine(engine.url)
        command = shop.commands.execute_async(far, Place(key), idempotency_key=key)
        error = await strike.cancel(command)
        found = find_unknown_outcome(error)
        if found is not None:
            unknown += 1
            assert found.ids == (key,)
        elif error is not None:
            assert recorded_as(engine, key) == 0
        again = await shop.commands.execute_async(far, Place(key), idempotency_key=key)
        assert again.value.order == key
        await far.dispose()

    for number, strike in enumerate(every_await()):
        asyncio.run(act(strike, f"k{number}"))
        assert len(receipts(engine)) == number + 1

    assert unknown


def recorded_as(engine: Engine, key: str) -> int:
    return recorded(engine).count(key)
