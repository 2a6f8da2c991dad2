"""A typed command is executed whole or not at all, in one transaction, on what is there."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Barrier, Thread

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from datapatterns import DataLayer
from datapatterns.cqrs import (
    CommandContext,
    CommandHandlers,
    Commands,
    Executed,
    InlineProjections,
    Projections,
)
from datapatterns.errors import (
    AbortedTransactionError,
    CommandHandlerError,
    CommandInvalidError,
    CommandResultError,
    ConditionConflictError,
    IsolationLevelError,
    OutcomeUnknownError,
    VersionConflictError,
)
from datapatterns.event_sourcing import ANY, EventStore, NewEvent, Retry, StreamEvents, StreamId
from tests.fixtures.orders import (
    Execute,
    Place,
    Receipt,
    Shop,
    SoldOutError,
    Taken,
    events_of,
    receipts,
    recorded,
    store,
    taken_of,
)
from tests.fixtures.read_models import (
    ItemScanned,
    SalesByProduct,
    append_all,
    create_tables,
    sales,
)

pytestmark = pytest.mark.postgres

KEYS = [None, "key"]


@dataclass(frozen=True, slots=True)
class Do:
    """A command that a test says the meaning of."""

    what: str = "it"


def handling(handler: Callable[[Do, CommandContext], object]) -> Commands:
    commands = Commands(store, CommandHandlers())

    def handle(command: Do, context: CommandContext) -> object:
        return handler(command, context)

    commands.handles(Do)(handle)
    return commands


def take(context: CommandContext, quantity: int = 1) -> None:
    stream = context.stream("stock", "egg")
    context.append(stream, [Taken(quantity)], expected_version=ANY)


# What is committed ---------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
def test_all_that_a_handler_writes_is_committed_together(
    engine: Engine, execute: Execute, key: str | None
) -> None:
    first = execute(Place("a", quantity=3), idempotency_key=key)
    second = execute(Place("b", quantity=4))

    assert (first.value, first.repeated, first.attempts) == (Receipt("a", 3), False, 1)
    assert second.value == Receipt("b", 7)
    assert second.position > first.position
    assert receipts(engine) == [("a", 3), ("b", 7)]
    [placed] = events_of(engine, "order", "b-1")
    assert placed.position == second.position
    assert recorded(engine) == ([key] if key else [])


@pytest.mark.parametrize("key", KEYS)
def test_what_the_domain_refuses_comes_out_as_it_is_and_nothing_stays(
    engine: Engine, shop: Shop, execute: Execute, key: str | None
) -> None:
    """Nor is it recorded: whoever repeats it has it decided again, on what is there then."""
    for _ in range(2):
        with pytest.raises(SoldOutError, match="egg"):
            execute(Place("a", quantity=1_001), idempotency_key=key)

    assert shop.decided == ["a", "a"]
    assert (receipts(engine), taken_of(engine), recorded(engine)) == ([], [], [])


def test_events_say_what_caused_them(engine: Engine, execute: Execute) -> None:
    done = execute(Place("a"), idempotency_key="k", metadata={"by": "ann"})
    execute(Place("b"), metadata={"correlation_id": "request-7"})

    [placed] = events_of(engine, "order", "a-1")
    cause = str(done.execution_id)
    assert placed.metadata == {"by": "ann", "correlation_id": cause, "causation_id": cause}
    [other] = events_of(engine, "order", "b-1")
    assert other.metadata
    assert other.metadata["correlation_id"] == "request-7"
    assert other.metadata["causation_id"] != cause
    with engine.begin() as conn:
        asked = text("SELECT execution_id FROM datapatterns.command_execution")
        assert conn.scalar(asked) == done.execution_id


def test_the_token_covers_whatever_was_appended_on_the_connection(execute: Execute) -> None:
    """By the store, too, and to several streams."""
    seen: list[int] = []

    def handler(_command: Do, context: CommandContext) -> None:
        conn, events = context.conn, [Taken(1), Taken(2)]
        wanted = [StreamEvents(StreamId("stock", key), events, ANY) for key in "ab"]
        done = context.store.append_to_streams(conn, wanted)
        seen.append(max(appended.position for appended in done.values()))
        with context.store.unit(conn) as unit:
            unit.append(StreamId("stock", "c"), events, expected_version=ANY)

    done = execute(Do(), by=handling(handler))

    assert done.position == seen[0] + 2
    assert execute(Do(), by=handling(lambda *_: None)).position == 0


def test_a_tenant_has_streams_and_keys_of_its_own(engine: Engine, execute: Execute) -> None:
    def strange(_command: Do, context: CommandContext) -> None:
        context.append(StreamId("stock", "egg"), [Taken(1)], expected_version=ANY)

    ours = execute(Place("a"), idempotency_key="k", tenant="ours")
    theirs = execute(Place("a"), idempotency_key="k", tenant="theirs")

    assert not theirs.repeated
    assert theirs.execution_id != ours.execution_id
    assert len(events_of(engine, "stock", "egg", "ours")) == 1
    with pytest.raises(ValueError, match="another tenant"):
        execute(Do(), by=handling(strange), tenant="ours")
    with pytest.raises(ValueError, match="U\\+0000"):
        execute(Do(), tenant="a\0b")


# Who was first -------------------------------------------------------------------------------


def others_take(engine: Engine, times: int) -> Callable[[], None]:
    left = [times]

    def act() -> None:
        if left[0]:
            left[0] -= 1
            with engine.begin() as conn:
                store.append(conn, StreamId("stock", "egg"), [Taken(7)], expected_version=ANY)

    return act


@pytest.mark.parametrize("key", KEYS)
def test_a_conflict_is_decided_again_and_nothing_of_the_attempts_before_stays(
    engine: Engine, shop: Shop, execute: Execute, key: str | None
) -> None:
    shop.meanwhile = others_take(engine, 2)

    done = execute(Place("a", quantity=5), idempotency_key=key)

    assert (done.value, done.attempts, done.repeated) == (Receipt("a", 19), 3, False)
    assert taken_of(engine) == [7, 7, 5]
    assert receipts(engine) == [("a", 19)]


def test_attempts_are_bounded(engine: Engine, shop: Shop, execute: Execute) -> None:
    shop.meanwhile = others_take(engine, 99)

    with pytest.raises(VersionConflictError):
        execute(Place("a"), retry=Retry(attempts=3, delay_seconds=0), idempotency_key="k")

    assert shop.decided == ["a"] * 3
    assert (receipts(engine), recorded(engine)) == ([], [])


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_serialisation_failure_is_a_conflict_like_any_other(
    engine: Engine, shop: Shop, execute: Execute, level: str
) -> None:
    execute(Place("a"))
    shop.meanwhile = others_take(engine, 1)
    strict = engine.execution_options(isolation_level=level)

    done = execute(Place("b"), at=strict, idempotency_key="k")

    assert (done.attempts, done.value) == (2, Receipt("b", 9))
    assert execute(Place("b"), at=strict, idempotency_key="k").repeated


def test_a_deadlock_is_a_conflict_like_any_other(engine: Engine) -> None:
    """Two handlers lock two rows, each the other's first; the server ends one of them."""
    with engine.begin() as conn:
        conn.execute(text("CREATE TABLE counter (id int, n int)"))
        conn.execute(text("INSERT INTO counter VALUES (1, 0), (2, 0)"))
    both = Barrier(2)

    def add(conn: Connection, counter: int) -> None:
        conn.execute(text("UPDATE counter SET n = n + 1 WHERE id = :id"), {"id": counter})

    def handler(command: Do, context: CommandContext) -> None:
        first, second = (1, 2) if command.what == "up" else (2, 1)
        add(context.conn, first)
        if context.attempt == 1:
            both.wait(30)
        add(context.conn, second)

    commands, attempts = handling(handler), list[int]()
    threads = [
        Thread(target=lambda w=what: attempts.append(commands.execute(engine, Do(w)).attempts))
        for what in ("up", "down")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    first, second = sorted(attempts)
    assert (first, second > 1) == (1, True)
    with engine.begin() as conn:
        assert list(conn.scalars(text("SELECT n FROM counter"))) == [2, 2]


@pytest.mark.parametrize("key", KEYS)
def test_other_errors_are_not_tried_again(
    engine: Engine, execute: Execute, key: str | None
) -> None:
    tried: list[int] = []

    def twice(_command: Do, context: CommandContext) -> None:
        tried.append(context.attempt)
        take(context)
        context.conn.execute(text("INSERT INTO taken_once VALUES (1)"))

    with engine.begin() as conn:
        conn.execute(text("CREATE TABLE taken_once (id int PRIMARY KEY)"))
        conn.execute(text("INSERT INTO taken_once VALUES (1)"))

    with pytest.raises(IntegrityError):
        execute(Do(), by=handling(twice), idempotency_key=key)

    assert tried == [1]
    assert taken_of(engine) == []


def test_an_unknown_outcome_that_a_handler_raises_is_its_own_affair(execute: Execute) -> None:
    tried: list[int] = []

    def handler(_command: Do, context: CommandContext) -> None:
        tried.append(context.attempt)
        raise OutcomeUnknownError("a payment", reason="lost")

    with pytest.raises(OutcomeUnknownError, match="a payment"):
        execute(Do(), by=handling(handler), idempotency_key="k")

    assert tried == [1]


def test_a_condition_that_others_have_broken_is_decided_again(execute: Execute) -> None:
    def handler(_command: Do, context: CommandContext) -> int:
        if context.attempt < 3:
            raise ConditionConflictError("stock-egg")
        return context.attempt

    assert execute(Do(), by=handling(handler)).value == 3


# What is refused -----------------------------------------------------------------------------


@dataclass
class Sent:
    """Changeable, so a handler may spoil it."""

    lines: list[int]


def test_each_attempt_gets_the_command_as_it_was_given(execute: Execute) -> None:
    commands, seen = Commands(store), list[list[int]]()

    @commands.handles(Sent)
    def _(command: Sent, context: CommandContext) -> None:
        seen.append(list(command.lines))
        command.lines.clear()
        if context.attempt == 1:
            raise ConditionConflictError("again")

    given = Sent([1, 2])
    execute(given, by=commands, idempotency_key="k")

    assert seen == [[1, 2], [1, 2]]
    assert given.lines == [1, 2]


def test_a_handler_calls_another_and_does_not_execute_it(
    engine: Engine, shop: Shop, execute: Execute
) -> None:
    def executes(_command: Do, _context: CommandContext) -> None:
        shop.commands.execute(engine, Place("a"), idempotency_key="k")

    def calls(_command: Do, context: CommandContext) -> None:
        shop.place(Place("a"), context)

    with pytest.raises(CommandHandlerError, match="the handler of Do executes it"):
        execute(Do(), by=handling(executes), idempotency_key="k")
    assert shop.decided == []
    execute(Do(), by=handling(calls), idempotency_key="k")
    assert receipts(engine) == [("a", 1)]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("word", ["commit", "rollback"])
def test_a_handler_that_ends_the_transaction_is_refused(
    engine: Engine, execute: Execute, word: str, key: str | None
) -> None:
    def handler(_command: Do, context: CommandContext) -> None:
        take(context)
        getattr(context.conn, word)()

    with pytest.raises(CommandHandlerError, match="ended the transaction"):
        execute(Do(), by=handling(handler), idempotency_key=key)

    assert (taken_of(engine), recorded(engine)) == ([], [])


def test_a_handler_that_rolls_back_in_sql_is_refused_if_there_is_a_key(
    engine: Engine, execute: Execute
) -> None:
    def handler(_command: Do, context: CommandContext) -> None:
        context.conn.exec_driver_sql("ROLLBACK")
        take(context)

    with pytest.raises(CommandHandlerError, match="ended the transaction"):
        execute(Do(), by=handling(handler), idempotency_key="k")

    assert taken_of(engine) == []


def test_a_handler_may_undo_a_part_in_a_savepoint(engine: Engine, execute: Execute) -> None:
    def handler(_command: Do, context: CommandContext) -> None:
        savepoint = context.conn.begin_nested()
        take(context, 5)
        savepoint.rollback()
        take(context, 6)

    execute(Do(), by=handling(handler), idempotency_key="k")

    assert taken_of(engine) == [6]


@pytest.mark.parametrize("key", KEYS)
def test_a_handler_that_catches_what_has_broken_its_transaction_is_refused(
    engine: Engine, execute: Execute, key: str | None
) -> None:
    def handler(_command: Do, context: CommandContext) -> None:
        with pytest.raises(DBAPIError):
            context.conn.execute(text("SELECT 1 / 0"))

    with pytest.raises(AbortedTransactionError, match="command Do"):
        execute(Do(), by=handling(handler), idempotency_key=key)
    assert recorded(engine) == []


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (object(), "object"),
        (Receipt("a", 1), "come back as something else"),
        (float("nan"), "nan"),
        ("a\0b", "U\\+0000"),
        ("\ud800", "surrogate"),
        (2**64, "63 bits"),
        ("é" * 40_000, "80002 bytes"),
    ],
)
def test_a_result_that_cannot_be_kept_is_refused_before_the_commit(
    engine: Engine, execute: Execute, result: object, why: str
) -> None:
    def handler(_command: Do, context: CommandContext) -> object:
        take(context)
        return result

    commands = Commands(store)

    @commands.handles(Do)
    def _(command: Do, context: CommandContext):  # type: ignore[no-untyped-def] # noqa: ANN202
        return handler(command, context)

    for key in KEYS:
        with pytest.raises(CommandResultError, match=why):
            execute(Do(), by=commands, idempotency_key=key)
    assert (taken_of(engine), recorded(engine)) == ([], [])


def test_what_has_not_run_is_no_result(execute: Execute) -> None:
    for unfinished in (lambda *_: asyncio.sleep(0), lambda *_: (n for n in (1, 2))):
        with pytest.raises(TypeError, match="nothing of it has run"):
            execute(Do(), by=handling(unfinished))


def test_an_engine_in_autocommit_mode_is_refused(engine: Engine, execute: Execute) -> None:
    each = engine.execution_options(isolation_level="AUTOCOMMIT")

    with pytest.raises(IsolationLevelError):
        execute(Place("a"), at=each, idempotency_key="k")
    assert recorded(engine) == []


def test_a_command_that_nothing_handles_is_refused(execute: Execute) -> None:
    with pytest.raises(CommandHandlerError, match=r"Taken: nothing handles it"):
        execute(Taken(1))


def test_a_command_that_does_not_fit_its_class_is_refused_before_anything_is_sent(
    execute: Execute, shop: Shop
) -> None:
    with pytest.raises(CommandInvalidError) as invalid:
        execute(Place("a", quantity="many"))  # type: ignore[arg-type]

    [(field, what)] = invalid.value.problems
    assert field == "quantity"
    assert "int" in what
    assert "many" not in str(invalid.value)
    assert shop.decided == []


# On a layer ----------------------------------------------------------------------------------


def test_a_layer_executes_on_its_database_alone(engine: Engine) -> None:
    handlers = CommandHandlers()
    with DataLayer(engine.url, commands=handlers) as layer:  # no Redis, no server of read models

        @layer.handles(Do, name="do.it")
        def do(command: Do, context: CommandContext) -> str:
            context.append(
                context.stream("a", "b"), [NewEvent("it.was.done", {})], expected_version=0
            )
            return command.what

        async def repeat() -> Executed:
            try:
                return await layer.execute_async(Do("that"), idempotency_key="k")
            finally:
                await layer.aclose()

        first = layer.execute(Do("that"), idempotency_key="k", metadata={"by": "ann"})
        again = asyncio.run(repeat())

    assert (first.value, first.repeated) == ("that", False)
    assert again == replace(first, repeated=True)
    assert handlers.of(Do()).handler is do
    assert [event.event_type for event in events_of(engine, "a", "b")] == ["it.was.done"]


# Read models that are kept inline ------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
def test_an_inline_read_model_is_committed_with_the_command_or_not_at_all(
    engine: Engine, execute: Execute, key: str | None
) -> None:
    inline = EventStore(inline=InlineProjections((SalesByProduct,)))
    create_tables(engine)
    append_all(engine, inline, [ItemScanned("milk", 10)])
    Projections(inline).make_inline(engine, SalesByProduct)
    commands = Commands(inline)

    @commands.handles(Do)
    def _(command: Do, context: CommandContext) -> None:
        scanned = [ItemScanned("milk", 5)]
        context.append(context.stream("basket", "7"), scanned, expected_version=ANY)
        if command.what == "refused":
            raise SoldOutError

    with pytest.raises(SoldOutError):
        execute(Do("refused"), by=commands, idempotency_key=key)
    assert sales(engine)["milk"] == (1, 10, "1")
    execute(Do(), by=commands, idempotency_key=key)
    assert sales(engine)["milk"] == (2, 15, "7")
