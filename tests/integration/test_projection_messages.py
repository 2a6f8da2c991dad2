"""Projections emit messages with their rows; relays pass them on at least once, in order."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import create_async_engine

from datapatterns.cqrs import (
    InlineProjections,
    Message,
    Outbox,
    Projection,
    Projections,
    Relayed,
    on,
    relay_messages,
    relay_messages_async,
)
from datapatterns.cqrs.messages.outbox import BUCKETS_MAX
from datapatterns.cqrs.messages.passing_on import FAILURES_MAX
from datapatterns.cqrs.running.leasing import claim, release
from datapatterns.cqrs.running.parking import pass_on_owed
from datapatterns.cqrs.running.segments import key_digest
from datapatterns.cqrs.schema import projection_tables
from datapatterns.cqrs.tables.table_runner import TableRunner
from datapatterns.errors import (
    IsolationLevelError,
    ProjectionDefinitionError,
    ProjectionStoppedError,
)
from datapatterns.event_sourcing import EventStore, RecordedEvent
from tests.fixtures.poisoned import Base, Sales, Sold, contents, projection_of
from tests.fixtures.read_models import append, append_all

pytestmark = pytest.mark.postgres

STORE = EventStore()
PROJECTIONS = Projections(STORE)
OUTBOX = Outbox()
EMITS = projection_of("stop", messages=True)
PARKS = projection_of("park", messages=True)
MENDED = projection_of("park", messages=True, mended=True)


@pytest.fixture
def shop(engine: Engine) -> Engine:
    Base.metadata.create_all(engine)
    return engine


def sold(*products: str, bad: tuple[str, ...] = ()) -> Sold:
    return Sold(list(products), 1, list(bad))


def stored(engine: Engine) -> list[tuple[str, int]]:
    with engine.begin() as conn:
        rows = conn.execute(text("SELECT payload FROM datapatterns.outbox ORDER BY id")).scalars()
        return [(row["product"], row["position"]) for row in rows]


def emitting(emit: Callable[[Projection, Sales], object], *, version: int = 1) -> type[Projection]:
    class Emitting(Projection, into=Sales, version=version, name="emitting", messages=True):
        @on(Sold, keys=lambda e, _: e.products)
        def _(self, row: Sales, _e: Sold, _meta: RecordedEvent) -> None:
            row.number += 1
            emit(self, row)

    return Emitting


# -- What is emitted -------------------------------------------------------------------------------


def test_each_event_and_row_has_its_message_in_the_order_of_the_log(shop: Engine) -> None:
    append_all(shop, STORE, [sold("milk", "tea"), sold("milk")])

    PROJECTIONS.catch_up(shop, EMITS, page_events=1)

    assert stored(shop) == [("milk", 1), ("tea", 1), ("milk", 2)]
    with shop.begin() as conn:
        first, *_ = OUTBOX.take(conn)
    digest = key_digest("milk").hex()
    assert (first.message_id, first.key) == (f"selling:1:{digest}:0", digest)
    assert (first.topic, first.payload) == ("sold", {"product": "milk", "position": 1})
    assert (first.position, first.projection, first.attempts) == (1, "selling", 0)


def test_several_messages_of_one_row_are_told_apart(shop: Engine) -> None:
    def three(projection: Projection, _row: Sales) -> None:
        for number in range(3):
            projection.emit("t", number, key="k")

    append_all(shop, STORE, [sold("milk")])
    PROJECTIONS.catch_up(shop, emitting(three))

    with shop.begin() as conn:
        taken = OUTBOX.take(conn)
    assert [(m.payload, m.key, m.message_id[-2:]) for m in taken] == [
        (0, "k", ":0"),
        (1, "k", ":1"),
        (2, "k", ":2"),
    ]


def test_what_is_undone_has_sent_nothing(shop: Engine) -> None:
    append_all(shop, STORE, [sold("milk"), sold("tea", bad=("tea",)), sold("gin")])

    with pytest.raises(ProjectionStoppedError):
        PROJECTIONS.catch_up(shop, EMITS)

    assert stored(shop) == [("milk", 1)]


def test_a_parked_event_has_its_messages_when_it_is_retried(shop: Engine) -> None:
    append_all(shop, STORE, [sold("milk", bad=("milk",)), sold("tea"), sold("milk")])
    PROJECTIONS.catch_up(shop, PARKS)
    before = stored(shop)

    PROJECTIONS.retry(shop, MENDED)

    assert before == [("tea", 2)]
    assert stored(shop) == [("tea", 2), ("milk", 1), ("milk", 3)]


def test_what_an_append_keeps_inline_sends_its_messages_with_it(shop: Engine) -> None:
    PROJECTIONS.catch_up(shop, EMITS)
    PROJECTIONS.make_inline(shop, EMITS)
    inline = EventStore(inline=InlineProjections((EMITS,)))

    with shop.connect() as conn:
        append(conn, inline, [sold("gin")])
        conn.rollback()
    position = append_all(shop, inline, [sold("milk", "tea")])
    PROJECTIONS.make_async(shop, EMITS)
    PROJECTIONS.catch_up(shop, EMITS)

    assert stored(shop) == [("milk", position), ("tea", position)]


def test_no_replay_sends_anything(shop: Engine) -> None:
    append_all(shop, STORE, [sold("milk")])
    PROJECTIONS.catch_up(shop, EMITS)
    empty(shop)

    assert PROJECTIONS.verify(shop, EMITS).matches
    PROJECTIONS.rebuild(shop, EMITS)
    drop_what_refers_to_sales(shop)
    PROJECTIONS.rebuild(shop, projection_of("stop", messages=True, version=2))

    assert stored(shop) == []


def drop_what_refers_to_sales(engine: Engine) -> None:
    with engine.begin() as conn:
        conn.execute(text("DROP TABLE best"))


def test_the_next_version_sends_what_waits_in_both_and_nothing_that_was_sent(shop: Engine) -> None:
    drop_what_refers_to_sales(shop)
    append_all(shop, STORE, [sold("milk", bad=("milk",)), sold("tea", bad=("tea",)), sold("gin")])
    PROJECTIONS.catch_up(shop, PARKS)
    PROJECTIONS.retry(shop, MENDED, "tea")

    PROJECTIONS.rebuild(shop, projection_of("park", messages=True, version=2))
    PROJECTIONS.retry(shop, projection_of("park", messages=True, mended=True, version=2))

    assert stored(shop) == [("gin", 3), ("tea", 2), ("milk", 1)]
    assert contents(shop) == {"milk": (1, 1), "tea": (1, 1), "gin": (1, 1)}


def test_a_rebuild_leaves_messages_to_what_waits_still_and_to_nothing_else(shop: Engine) -> None:
    append_all(shop, STORE, [sold("milk", bad=("milk",)), sold("tea", bad=("tea",)), sold("gin")])
    PROJECTIONS.catch_up(shop, PARKS)
    PROJECTIONS.retry(shop, MENDED, "tea")
    before = stored(shop)

    # Its code refuses tea again, whose message has been sent.
    PROJECTIONS.rebuild(shop, PARKS)
    PROJECTIONS.retry(shop, MENDED)

    assert before == [("gin", 3), ("tea", 2)]
    assert stored(shop) == [*before, ("milk", 1)]


@pytest.mark.parametrize("waits_in_the_new_one", [True, False])
def test_who_takes_the_place_of_a_version_owes_what_it_owed_if_it_waits_there_too(
    shop: Engine, *, waits_in_the_new_one: bool
) -> None:
    tables = projection_tables(STORE.schema)
    append_all(shop, STORE, [sold("milk", bad=("milk",))])
    PROJECTIONS.catch_up(shop, PARKS)
    with shop.begin() as conn:
        conn.execute(
            text(
                "INSERT INTO datapatterns.projection (name, version, kind, status, targets)"
                " SELECT name, 2, kind, 'ready', targets FROM datapatterns.projection"
            )
        )
        if waits_in_the_new_one:
            conn.execute(
                text(
                    "INSERT INTO datapatterns.projection_parked"
                    " (name, version, key_digest, position, event_type, silent)"
                    " SELECT name, 2, key_digest, position, event_type, true"
                    " FROM datapatterns.projection_parked"
                )
            )

        pass_on_owed(conn, tables, "selling", version=1, heir=2)

        silent = text("SELECT version, silent FROM datapatterns.projection_parked ORDER BY version")
        owing = [tuple(row) for row in conn.execute(silent)]
    assert owing == [(1, True), *([(2, False)] if waits_in_the_new_one else [])]


def empty(engine: Engine) -> None:
    with engine.begin() as conn:
        conn.execute(text("DELETE FROM datapatterns.outbox"))


@pytest.mark.parametrize("status", ["ready", "standby"])
def test_a_version_that_is_not_live_sends_nothing_not_even_what_it_parked(
    shop: Engine, status: str
) -> None:
    append_all(shop, STORE, [sold("nothing")])
    PROJECTIONS.catch_up(shop, PARKS)
    empty(shop)
    beside_the_live_one(shop, status)
    append_all(shop, STORE, [sold("tea"), sold("milk", bad=("milk",))])
    run_as_it_stands(shop, PARKS)
    live_again(shop)
    append_all(shop, STORE, [sold("milk")])
    PROJECTIONS.catch_up(shop, PARKS)

    PROJECTIONS.retry(shop, MENDED)

    # The last event came while it was live, so its message is this version's to send.
    assert stored(shop) == [("milk", 4)]


def beside_the_live_one(engine: Engine, status: str) -> None:
    with engine.begin() as conn:
        conn.execute(text("CREATE TABLE sales__v1 (LIKE sales INCLUDING ALL)"))
        conn.execute(text("INSERT INTO sales__v1 SELECT * FROM sales"))
        conn.execute(text("UPDATE datapatterns.projection SET status = :s"), {"s": status})


def live_again(engine: Engine) -> None:
    with engine.begin() as conn:
        conn.execute(text("DELETE FROM sales"))
        conn.execute(text("INSERT INTO sales SELECT * FROM sales__v1"))
        conn.execute(text("UPDATE datapatterns.projection SET status = 'live'"))


def run_as_it_stands(engine: Engine, projection: type[Projection]) -> None:
    tables = projection_tables(STORE.schema)
    runner = TableRunner(STORE, projection, 100)
    with engine.connect() as conn:
        with conn.begin():
            (lease,) = claim(conn, tables, projection, owner="me", seconds=60)
        lease, _ = runner.page(conn, lease)
        with conn.begin():
            release(conn, tables, lease)


# -- What is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topic", "payload", "key", "said"),
    [
        ("", 1, None, "a topic is"),
        ("t" * 201, 1, None, "a topic is"),
        (7, 1, None, "a topic is"),
        ("t", object(), None, "of class object is not JSON"),
        ("t", "\ud800", None, "of class str is not JSON"),
        ("t", "x" * 300_000, None, "is above 262144"),
        ("t", 1, "", "a key is text"),
        ("t", 1, "k" * 501, "a key is text"),
    ],
)
def test_what_cannot_be_sent_stops_like_any_event_that_cannot_be_applied(
    shop: Engine,
    topic: Any,  # noqa: ANN401 -- a mistake
    payload: object,
    key: str | None,
    said: str,
) -> None:
    append_all(shop, STORE, [sold("milk")])

    with pytest.raises(ProjectionStoppedError, match=f"MessageRefusedError: .*{said}"):
        PROJECTIONS.catch_up(
            shop, emitting(lambda projection, _: projection.emit(topic, payload, key=key))
        )

    assert contents(shop) == {}


def test_what_only_the_database_refuses_is_the_events_fault_as_well(shop: Engine) -> None:
    append_all(shop, STORE, [sold("fine"), sold("poison")])

    with pytest.raises(ProjectionStoppedError) as stopped:
        PROJECTIONS.catch_up(
            shop,
            emitting(lambda p, row: p.emit("t", "\0" if row.product == "poison" else "fine")),
        )

    assert stopped.value.position == 2
    assert contents(shop) == {"fine": (1, 0)}


def test_only_handlers_of_projections_with_messages_emit(shop: Engine) -> None:
    silent = projection_of("stop")()

    with pytest.raises(ProjectionDefinitionError, match="messages=True"):
        silent.emit("t", 1)
    with pytest.raises(ProjectionDefinitionError, match="in a method with @on"):
        EMITS().emit("t", 1)
    del shop


# -- What is passed on -----------------------------------------------------------------------------


def fill(engine: Engine, *keys: str) -> None:
    def emit(projection: Projection, row: Sales) -> None:
        projection.emit("t", row.number, key=row.product)

    append_all(engine, STORE, [sold(key) for key in keys])
    PROJECTIONS.catch_up(engine, emitting(emit))


def told(messages: list[Message]) -> list[tuple[str, int]]:
    return [(message.key, message.payload) for message in messages]


def test_messages_are_passed_on_and_gone(shop: Engine) -> None:
    fill(shop, "a", "b", "a")
    got: list[Message] = []

    first = relay_messages(shop, got.append, limit=2)
    second = relay_messages(shop, got.append)
    third = relay_messages(shop, got.append)

    assert told(got) == [("a", 1), ("b", 1), ("a", 2)]
    assert (first, second, third) == (
        Relayed(2, 0, caught_up=False),
        Relayed(1, 0, caught_up=True),
        Relayed(0, 0, caught_up=True),
    )


def test_a_relay_goes_on_until_the_messages_of_all_keys_are_passed_on(shop: Engine) -> None:
    keys = [f"key {number}" for number in range(3 * BUCKETS_MAX)]  # more than one step looks at
    fill(shop, *keys)
    got: list[Message] = []

    while not relay_messages(shop, got.append).caught_up:
        pass

    assert sorted(message.key for message in got) == sorted(keys)


def test_asyncio_passes_them_on_as_well(shop: Engine) -> None:
    fill(shop, "a", "b", "a")
    got: list[Message] = []

    async def publish(message: Message) -> None:
        if message.key == "b":
            raise RuntimeError
        got.append(message)

    async def run() -> Relayed:
        engine = create_async_engine(shop.url)
        try:
            return await relay_messages_async(engine, publish)
        finally:
            await engine.dispose()

    assert asyncio.run(run()) == Relayed(2, 1, caught_up=False)
    assert told(got) == [("a", 1), ("a", 2)]


def test_a_key_waits_behind_what_is_refused_and_others_do_not(shop: Engine) -> None:
    fill(shop, "a", "b", "a", "b")
    got: list[Message] = []

    def publish(message: Message) -> None:
        if message.key == "a":
            raise ConnectionError("the broker said: payload 42 is wrong")
        got.append(message)

    done = relay_messages(shop, publish)
    quiet = relay_messages(shop, publish)
    with shop.begin() as conn:
        rows = conn.execute(text("SELECT attempts, error FROM datapatterns.outbox ORDER BY id"))
        kept = rows.all()
        conn.execute(text("UPDATE datapatterns.outbox SET retry_at = now() WHERE attempts > 0"))
    relay_messages(shop, got.append)

    assert (done.passed_on, done.refused, quiet) == (2, 1, Relayed(0, 0, caught_up=True))
    assert kept == [(1, "ConnectionError"), (0, None)]
    assert told(got) == [("b", 1), ("b", 2), ("a", 1), ("a", 2)]


def test_each_attempt_waits_longer_until_the_message_is_given_up(shop: Engine) -> None:
    fill(shop, "a", "a")
    pauses: list[int] = []

    def refuse(_message: Message) -> None:
        raise RuntimeError

    for _ in range(3):
        relay_messages(shop, refuse, attempts_max=3)
        with shop.begin() as conn:
            pauses += conn.scalars(
                text(
                    "UPDATE datapatterns.outbox SET retry_at = clock_timestamp()"
                    " WHERE retry_at IS NOT NULL RETURNING 1"
                )
            ).all()
    got: list[Message] = []
    relay_messages(shop, got.append)

    assert len(pauses) == 2
    assert told(got) == [("a", 2)]
    with shop.begin() as conn:
        (gone,) = OUTBOX.given_up(conn)
        assert (gone.payload, gone.attempts) == (1, 3)
        assert OUTBOX.forget(conn, older_than=timedelta(days=1)) == 0
        assert OUTBOX.take_back(conn, [gone.message_id]) == 1
    relay_messages(shop, got.append)
    assert told(got) == [("a", 2), ("a", 1)]


def test_what_was_given_up_long_ago_is_forgotten(shop: Engine) -> None:
    fill(shop, "a", "b")

    def refuse(_message: Message) -> None:
        raise RuntimeError

    relay_messages(shop, refuse, attempts_max=1)
    with shop.begin() as conn:
        conn.execute(text("UPDATE datapatterns.outbox SET given_up_at = now() - interval '2 d'"))
        assert OUTBOX.forget(conn, older_than=timedelta(days=1), limit=1) == 1
        assert OUTBOX.forget(conn, older_than=timedelta(days=1)) == 1


def test_a_broker_that_is_away_is_not_asked_for_every_message(shop: Engine) -> None:
    fill(shop, *(f"k{n}" for n in range(FAILURES_MAX + 5)))
    asked = []

    def refuse(message: Message) -> None:
        asked.append(message)
        raise ConnectionError

    relay_messages(shop, refuse)

    assert len(asked) == FAILURES_MAX


def test_a_relay_that_dies_after_publishing_has_published_in_vain(shop: Engine) -> None:
    fill(shop, "a", "a")
    victim = create_engine(shop.url)
    got: list[Message] = []

    def publish(message: Message) -> None:
        got.append(message)
        if len(got) == 2:
            with shop.begin() as other:
                other.execute(
                    text(
                        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
                        " WHERE datname = current_database() AND state = 'idle in transaction'"
                        " AND pid <> pg_backend_pid()"
                    )
                )

    with pytest.raises(OperationalError):
        relay_messages(victim, publish)
    victim.dispose()
    relay_messages(shop, got.append)

    assert told(got) == [("a", 1), ("a", 2)] * 2
    assert [m.message_id for m in got[:2]] == [m.message_id for m in got[2:]]


def test_of_two_relays_the_second_gets_nothing_of_a_key_that_the_first_has(shop: Engine) -> None:
    fill(shop, "a", "b", "a")
    inner: list[Message] = []
    got: list[Message] = []

    def publish(message: Message) -> None:
        got.append(message)
        if not inner:
            relay_messages(shop, inner.append)  # while the first is at it

    relay_messages(shop, publish, limit=1)
    relay_messages(shop, got.append)

    assert told(inner) == [("b", 1)]
    assert told(got) == [("a", 1), ("a", 2)]


def test_messages_taken_in_a_transaction_that_is_undone_are_there_still(shop: Engine) -> None:
    fill(shop, "a")

    with shop.connect() as conn:
        (taken,) = OUTBOX.take(conn)
        assert OUTBOX.remove(conn, [taken]) == 1
        conn.rollback()
    with shop.begin() as conn:
        assert told(OUTBOX.take(conn)) == [("a", 1)]


def test_a_snapshot_that_may_be_old_takes_nothing(shop: Engine) -> None:
    with (
        shop.connect().execution_options(isolation_level="REPEATABLE READ") as conn,
        pytest.raises(IsolationLevelError),
    ):
        OUTBOX.take(conn)


def test_a_relay_at_work_holds_back_nobody(shop: Engine) -> None:
    fill(shop, "a")
    held: list[object] = []

    def publish(_message: Message) -> None:
        with shop.begin() as other:
            held.extend(
                other.execute(
                    text(
                        "SELECT backend_xid, backend_xmin FROM pg_stat_activity"
                        " WHERE datname = current_database() AND state = 'idle in transaction'"
                    )
                ).all()
            )

    relay_messages(shop, publish)

    assert held == [(None, None)]


def test_a_silent_relay_is_ended_by_the_server_and_others_take_over(shop: Engine) -> None:
    fill(shop, "a")
    engine = create_engine(shop.url)
    with pytest.raises(DBAPIError, match="idle-in-transaction"):
        relay_messages(engine, lambda _: wait_until_ended(shop), silence_seconds_max=0.1)
    engine.dispose()
    got: list[Message] = []
    relay_messages(shop, got.append)

    assert told(got) == [("a", 1)]


def wait_until_ended(engine: Engine) -> None:
    """Return when the server has ended the session that is idle in its transaction."""
    sessions = text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND state = 'idle in transaction'"
    )
    while True:
        with engine.begin() as conn:
            if conn.scalar(sessions) == 0:
                return
