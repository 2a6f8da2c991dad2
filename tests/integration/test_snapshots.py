import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from uuid import UUID, uuid4

import pytest
from psycopg import Cursor
from sqlalchemy import Connection, Engine, event, text

from datapatterns.errors import (
    AggregateError,
    EventGapError,
    EventTypeError,
    VersionConflictError,
)
from datapatterns.event_sourcing import (
    NEW_STREAM,
    Aggregate,
    EventStore,
    EventTypes,
    NewEvent,
    StreamId,
    applies,
    every,
)
from datapatterns.sql.migrating import upgrade
from tests.fixtures.colours import Call

types = EventTypes()
store = EventStore(types=types)


@types.event("basket.scanned")
@dataclass(frozen=True, slots=True)
class Scanned:
    product: int
    cents: int


@dataclass
class Line:
    cents: int
    times: int = 1


class Basket(Aggregate, category="basket", snapshot=every(10)):
    LIMIT: ClassVar[int] = 1_000_000
    total = 0
    lines: dict[int, Line] = {}  # noqa: RUF012 -- each object gets its own
    latest: UUID | None = None

    @applies
    def _(self, e: Scanned) -> None:
        self.total += e.cents
        line = self.lines.setdefault(e.product, Line(e.cents, 0))
        line.times += 1

    def scan(self, product: int, cents: int = 5) -> None:
        self.emit(Scanned(product, cents))


def state(basket: Basket) -> tuple[object, ...]:
    return basket.version, basket.total, basket.lines, basket.latest


def filled(conn: Connection, count: int, key: str = "7") -> Basket:
    basket = store.load(conn, Basket, key)
    for n in range(count):
        basket.scan(n % 3, n)
    store.save(conn, basket)
    return basket


def rows_of(conn: Connection, *, version: int | None = None, at: datetime | None = None) -> int:
    """Return how many states and events a load of the basket fetches."""
    fetched: list[int] = []

    def count(_: object, cursor: Cursor[object], *__: object) -> None:
        fetched.append(cursor.rowcount)

    event.listen(conn, "after_cursor_execute", count)
    try:
        store.load(conn, Basket, "7", version=version, at=at)
    finally:
        event.remove(conn, "after_cursor_execute", count)
    return sum(fetched) - 2  # the stream, and its one type of event


def test_what_was_saved_is_loaded(call: Call) -> None:
    basket = call(store.load, Basket, "7")
    basket.scan(1, 149)
    basket.scan(2, 51)

    token = call(store.save, basket)
    loaded = call(store.load, Basket, "7")
    loaded.scan(1, 1)
    later = call(store.save, loaded)

    assert state(basket)[:2] == (2, 200)
    assert state(call(store.load, Basket, "7"))[:2] == (3, 201)
    assert call(store.high_water_mark) == later > token


def test_all_of_it_works_in_a_schema_of_another_name(engine: Engine) -> None:
    other = EventStore(schema="till", types=types)
    with engine.begin() as conn:
        upgrade(conn, schema="till")
        basket = other.load(conn, Basket, "7")
        basket.scan(1)
        other.save(conn, basket)

        assert other.save_snapshot(conn, basket)
        assert other.load(conn, Basket, "7").total == 5
        assert store.load(conn, Basket, "7").version == 0


def test_a_load_begins_at_the_latest_snapshot(conn: Connection) -> None:
    basket = filled(conn, 20)
    assert store.save_snapshot(conn, basket)
    filled(conn, 5)

    assert rows_of(conn) == 6
    loaded = store.load(conn, Basket, "7")
    assert state(loaded) == state(replayed(conn, 25))
    assert loaded.lines[0] == Line(0, 9)


def replayed(conn: Connection, version: int) -> Basket:
    """Return the basket as the events alone make it."""
    basket = Basket("7")
    for recorded in store.read_stream(conn, basket.stream, limit=version):
        for occurred in store.decode(recorded):
            basket.emit(occurred)
    return basket


def test_snapshots_are_written_when_due_and_never_by_themselves(conn: Connection) -> None:
    written = []
    for _ in range(5):
        filled(conn, 4)
        written.append(store.snapshot_if_due(conn, store.load(conn, Basket, "7")))

    assert written == [False, False, True, False, False]
    assert conn.scalar(text("SELECT array_agg(version) FROM datapatterns.snapshot")) == [12]


def test_the_past_is_answered_by_version_and_by_time(engine: Engine) -> None:
    times = []
    for _ in range(6):
        with engine.begin() as conn:
            filled(conn, 5)
            basket = store.load(conn, Basket, "7")
            if basket.version in {10, 20}:
                store.save_snapshot(conn, basket)
            [latest] = store.read_stream(conn, basket.stream, limit=1, backwards=True)
            times.append(latest.recorded_at)

    with engine.begin() as conn:
        for version in range(31):
            assert state(store.load(conn, Basket, "7", version=version)) == state(
                replayed(conn, version) if version else Basket("7")
            )
        for n, at in enumerate(times, start=1):
            assert store.load(conn, Basket, "7", at=at).version == 5 * n
            before = at - timedelta(microseconds=1)
            assert store.load(conn, Basket, "7", at=before).version == 5 * (n - 1)
        assert store.load(conn, Basket, "7", at=times[-1], version=12).version == 12
        assert rows_of(conn, version=12) == 3
        assert rows_of(conn, at=times[1]) == 1


def test_a_past_state_cannot_be_saved(conn: Connection) -> None:
    filled(conn, 3)
    past = store.load(conn, Basket, "7", version=2)
    past.scan(1)

    with pytest.raises(VersionConflictError):
        store.save(conn, past)


def test_questions_without_an_answer_are_refused(conn: Connection) -> None:
    filled(conn, 3)

    with pytest.raises(ValueError, match="at version 3, not yet at 4"):
        store.load(conn, Basket, "7", version=4)
    with pytest.raises(ValueError, match="time zone"):
        store.load(conn, Basket, "7", at=datetime(2026, 1, 1))  # noqa: DTZ001 -- the point
    with pytest.raises(ValueError, match="no version"):
        store.load(conn, Basket, "7", version=-1)


def test_of_two_who_loaded_the_same_the_second_must_decide_again(engine: Engine) -> None:
    with engine.begin() as conn:
        filled(conn, 1)
    with engine.connect() as one, engine.connect() as two:
        first, second = store.load(one, Basket, "7"), store.load(two, Basket, "7")
        first.scan(1)
        second.scan(2)
        store.save(one, first)
        one.commit()

        with pytest.raises(VersionConflictError):
            store.save(two, second)

        again = store.load(two, Basket, "7")
        again.scan(2)
        store.save(two, again)
        two.commit()

    with engine.begin() as conn:
        assert store.load(conn, Basket, "7").version == 3


@pytest.mark.parametrize("committed", [True, False])
def test_a_save_of_unknown_outcome_is_simply_repeated(engine: Engine, *, committed: bool) -> None:
    with engine.begin() as conn:
        basket = filled(conn, 1)
    basket.scan(2)
    basket.scan(3)
    with engine.connect() as conn:
        token = store.save(conn, basket)
        if committed:
            conn.commit()

    with engine.begin() as conn:
        again = store.save(conn, basket)
    with engine.begin() as conn:
        loaded = store.load(conn, Basket, "7")

    assert state(loaded) == state(basket)
    assert (again == token) is committed


def test_after_a_rollback_new_events_on_the_old_state_are_a_conflict(engine: Engine) -> None:
    with engine.connect() as conn:
        basket = filled(conn, 2)
        conn.rollback()
    basket.scan(1)

    with engine.begin() as conn, pytest.raises(VersionConflictError):
        store.save(conn, basket)


def test_saving_nothing_returns_where_the_state_stands(conn: Connection) -> None:
    assert store.save(conn, Basket("7")) == 0
    token = store.save(conn, filled(conn, 1))
    assert store.save(conn, store.load(conn, Basket, "7")) == token


def test_a_state_whose_events_were_rolled_back_leaves_no_snapshot(engine: Engine) -> None:
    with engine.connect() as conn:
        basket = filled(conn, 2)
        conn.rollback()
    with engine.begin() as conn:
        assert not store.save_snapshot(conn, basket)
        filled(conn, 2)
        assert not store.save_snapshot(conn, basket)
        assert not store.save_snapshot(conn, Basket("none"))


def test_only_the_newest_snapshots_are_kept(conn: Connection) -> None:
    for _ in range(5):
        filled(conn, 2)
        store.save_snapshot(conn, store.load(conn, Basket, "7"), keep=2)
    filled(conn, 2, key="other")
    store.save_snapshot(conn, store.load(conn, Basket, "other"), keep=2)

    kept = conn.execute(text("SELECT version FROM datapatterns.snapshot ORDER BY 1")).scalars()
    assert list(kept) == [2, 8, 10]


def test_a_snapshot_that_exists_is_not_new(conn: Connection) -> None:
    basket = filled(conn, 2)

    assert store.save_snapshot(conn, basket)
    assert not store.save_snapshot(conn, basket)


def test_unsaved_events_do_not_get_into_a_snapshot(conn: Connection) -> None:
    basket = filled(conn, 2)
    basket.scan(1)

    with pytest.raises(ValueError, match="unsaved"):
        store.save_snapshot(conn, basket)
    with pytest.raises(ValueError, match="keep at least 1"):
        store.save_snapshot(conn, filled(conn, 1, "other"), keep=0)


def release(factor: int, *, snapshot_version: int = 0) -> type[Any]:
    """Return the aggregate as another release might have it."""

    class Counter(
        Aggregate, category="counter", snapshot=every(1), snapshot_version=snapshot_version
    ):
        total = 0

        if factor == 1:

            @applies
            def _(self, e: Scanned) -> None:
                self.total += e.cents

        else:

            @applies
            def _(self, e: Scanned) -> None:
                self.total += e.cents * 2

    return Counter


def test_changed_code_does_not_use_the_snapshots_of_other_code(conn: Connection) -> None:
    stream = StreamId("counter", "1")
    store.append(conn, stream, [Scanned(1, 10)] * 3, expected_version=NEW_STREAM)
    for cls in (release(1), release(2), release(1, snapshot_version=1)):
        assert store.save_snapshot(conn, store.load(conn, cls, "1"))

    assert not store.save_snapshot(conn, store.load(conn, release(1), "1"))
    assert store.load(conn, release(1), "1").total == 30
    assert store.load(conn, release(2), "1").total == 60


def test_a_new_upcaster_is_changed_code(conn: Connection) -> None:
    ours = EventTypes()
    ours.event("basket.scanned")(Scanned)
    shop = EventStore(types=ours)
    counter = release(1)
    old = NewEvent("basket.scanned", {"product": 1, "cents": 1}, schema_version=1)
    shop.append(conn, StreamId("counter", "1"), [old], expected_version=NEW_STREAM)
    shop.save_snapshot(conn, shop.load(conn, counter, "1"))

    ours.event("basket.scanned", version=2)(Scanned)
    ours.upcast("basket.scanned", 1)(lambda data: {**data, "cents": data["cents"] * 7})

    assert shop.load(conn, counter, "1").total == 7


def test_a_corrected_upcaster_is_changed_code(conn: Connection) -> None:
    wrong, right = EventTypes(), EventTypes()
    for ours in (wrong, right):
        ours.event("basket.scanned", version=2)(Scanned)
    wrong.upcast("basket.scanned", 1)(lambda data: {**data, "cents": data["cents"] * 7})
    right.upcast("basket.scanned", 1)(lambda data: {**data, "cents": data["cents"] * 8})
    old = NewEvent("basket.scanned", {"product": 1, "cents": 1}, schema_version=1)
    store.append(conn, StreamId("counter", "1"), [old], expected_version=NEW_STREAM)
    shop = EventStore(types=wrong)
    shop.save_snapshot(conn, shop.load(conn, release(1), "1"))

    assert EventStore(types=right).load(conn, release(1), "1").total == 8


@pytest.mark.parametrize(
    "damage",
    [
        'UPDATE datapatterns.snapshot SET state = \'{"total": "x"}\'',
        "UPDATE datapatterns.snapshot SET state = '[]'",
        "UPDATE datapatterns.snapshot SET version = 99",
        "UPDATE datapatterns.snapshot SET position = 99",
    ],
)
def test_a_snapshot_that_cannot_be_used_is_ignored_and_logged(
    conn: Connection, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    store.save_snapshot(conn, filled(conn, 6))
    conn.execute(text(damage))

    with caplog.at_level(logging.WARNING, logger="datapatterns.event_sourcing.states.loading"):
        loaded = store.load(conn, Basket, "7")

    assert state(loaded) == state(replayed(conn, 6))
    assert "snapshot ignored" in caplog.text


def test_a_snapshot_of_an_event_whose_place_another_took_after_a_restore_is_ignored(
    conn: Connection,
) -> None:
    store.save_snapshot(conn, filled(conn, 6))
    conn.execute(text("ALTER TABLE datapatterns.event DISABLE TRIGGER USER"))
    # The tables of events are a day older; what was appended since got the same positions.
    conn.execute(
        text(
            "UPDATE datapatterns.event SET at = at + interval '1 day',"
            """ data = '{"product": 1, "cents": 100}' WHERE version = 6"""
        )
    )

    loaded = store.load(conn, Basket, "7")

    assert state(loaded) == state(replayed(conn, 6))
    assert loaded.total == 110


def test_a_missing_event_is_corruption(conn: Connection) -> None:
    filled(conn, 5)
    conn.execute(text("ALTER TABLE datapatterns.event DISABLE TRIGGER moves_only"))
    conn.execute(text("DELETE FROM datapatterns.event WHERE version = 3"))

    with pytest.raises(EventGapError) as gap:
        store.load(conn, Basket, "7")

    assert gap.value.version == 3


def bad_states() -> dict[str, type[Aggregate]]:
    class Undeclared(Aggregate, category="bad", snapshot=every(1)):
        @applies
        def _(self, e: Scanned) -> None:
            self.total = e.cents

    class Unannotated(Aggregate, category="bad", snapshot=every(1)):
        lines = []  # type: ignore[var-annotated] # noqa: RUF012 -- the point

        @applies
        def _(self, e: Scanned) -> None: ...

    class Changing(Aggregate, category="bad", snapshot=every(1)):
        lines: Any = None

        @applies
        def _(self, e: Scanned) -> None:
            self.lines = Line(e.cents)

    class Wrong(Aggregate, category="bad", snapshot=every(1)):
        total: int = 0

        @applies
        def _(self, e: Scanned) -> None:
            self.total = str(e.cents)  # type: ignore[assignment] # the point

    class Unstorable(Aggregate, category="bad", snapshot=every(1)):
        total: float = 0

        @applies
        def _(self, e: Scanned) -> None:
            self.total = float("nan") * e.cents

    return {cls.__name__: cls for cls in (Undeclared, Unannotated, Changing, Wrong, Unstorable)}


@pytest.mark.parametrize("name", bad_states())
def test_state_that_would_not_come_back_the_same_is_refused(conn: Connection, name: str) -> None:
    stream = StreamId("bad", "1")
    store.append(conn, stream, [Scanned(1, 1)], expected_version=NEW_STREAM)

    with pytest.raises(AggregateError, match=name):
        store.save_snapshot(conn, store.load(conn, bad_states()[name], "1"))


def test_an_aggregate_without_a_policy_has_no_snapshots(conn: Connection) -> None:
    class Plain(Aggregate, category="basket"):
        anything = object()

        @applies
        def _(self, e: Scanned) -> None: ...

    plain = store.load(conn, Plain, "7")

    assert not store.snapshot_if_due(conn, plain)
    with pytest.raises(AggregateError, match="no snapshot policy"):
        store.save_snapshot(conn, plain)


def test_an_event_of_an_unknown_type_stops_the_load(conn: Connection) -> None:
    unknown = NewEvent("who.knows", {}, event_id=uuid4())
    store.append(conn, StreamId("basket", "7"), [unknown], expected_version=NEW_STREAM)

    with pytest.raises(EventTypeError, match=r"who\.knows"):
        store.load(conn, Basket, "7")


def test_state_of_many_kinds_survives(conn: Connection) -> None:
    class Kinds(Aggregate, category="basket", snapshot=every(1)):
        seen: set[int] = set()  # noqa: RUF012 -- each object gets its own
        at: datetime | None = None
        unset: str

        @applies
        def _(self, e: Scanned) -> None:
            self.seen.add(e.product)
            self.at = datetime(2026, 1, 1, tzinfo=UTC)

    filled(conn, 4)
    store.save_snapshot(conn, store.load(conn, Kinds, "7"))
    loaded = store.load(conn, Kinds, "7")

    assert loaded.seen == {0, 1, 2}
    assert loaded.at == datetime(2026, 1, 1, tzinfo=UTC)
    assert not hasattr(loaded, "unset")


def test_a_state_of_events_that_others_replaced_cannot_be_saved(engine: Engine) -> None:
    with engine.connect() as conn:
        basket = filled(conn, 2)
        conn.rollback()
    with engine.begin() as conn:
        theirs = filled(conn, 2)
        basket.scan(1)

        with pytest.raises(VersionConflictError, match="rolled back"):
            store.save(conn, basket)

        assert state(store.load(conn, Basket, "7")) == state(theirs)


def test_a_savepoint_that_was_rolled_back_takes_the_loaded_state_along(conn: Connection) -> None:
    filled(conn, 1)
    savepoint = conn.begin_nested()
    store.append(conn, StreamId("basket", "7"), [Scanned(1, 1)], expected_version=1)
    basket = store.load(conn, Basket, "7")
    savepoint.rollback()
    store.append(conn, StreamId("basket", "7"), [Scanned(2, 2)], expected_version=1)
    basket.scan(3)

    with pytest.raises(VersionConflictError):
        store.save(conn, basket)


class Trail(Aggregate, category="trail", snapshot=every(1)):
    """Its state depends on the order of keys and on the version."""

    places: dict[str, int] = {}  # noqa: RUF012 -- each object gets its own

    @applies
    def _(self, e: Scanned) -> None:
        self.places[f"{e.product:b}"] = self.version


def test_snapshot_replay_and_memory_agree_on_order_and_version(conn: Connection) -> None:
    trail = Trail("1")
    for product in (9, 2, 5, 1):
        trail.emit(Scanned(product, 1))
    store.save(conn, trail)

    replayed_trail = store.load(conn, Trail, "1")
    assert store.save_snapshot(conn, replayed_trail)
    loaded = store.load(conn, Trail, "1")

    expected = [("1001", 0), ("10", 1), ("101", 2), ("1", 3)]
    assert list(trail.places.items()) == expected
    assert list(replayed_trail.places.items()) == expected
    assert list(loaded.places.items()) == expected


@types.event("trail.begun")
@dataclass(frozen=True, slots=True)
class Begun:
    names: list[str]


class Names(Aggregate, category="names"):
    names: list[str] = []  # noqa: RUF012 -- each object gets its own

    @applies
    def _(self, e: Begun) -> None:
        self.names = e.names

    @applies
    def _(self, e: Scanned) -> None:
        self.names.append(str(e.product))


def test_what_the_state_does_with_a_list_of_an_event_does_not_change_the_event(
    conn: Connection,
) -> None:
    names, given = Names("1"), ["a"]
    names.emit(Begun(given))
    names.emit(Scanned(2, 2))
    given.append("late")

    store.save(conn, names)

    assert names.unsaved == ()
    assert store.load(conn, Names, "1").names == ["a", "2"]


def test_state_under_a_name_that_every_aggregate_has_is_not_left_out_of_a_snapshot(
    conn: Connection,
) -> None:
    class Product(Aggregate, category="product", snapshot=every(1)):
        @applies
        def _(self, e: Scanned) -> None:
            vars(self)["category"] = str(e.product)

    product = Product("1")
    product.emit(Scanned(1, 1))
    store.save(conn, product)

    with pytest.raises(AggregateError, match="call it otherwise"):
        store.save_snapshot(conn, product)


def limited(limit: int) -> type[Any]:
    """Return an aggregate with state that no handler names, as releases may have it."""

    class Limited(Aggregate, category="limited", snapshot=every(1)):
        limit_cents = limit

        @applies
        def _(self, e: Scanned) -> None: ...

    return Limited


def started(start: int) -> type[Any]:
    """Return an aggregate that sets its state itself, as releases may do it."""

    class Started(Aggregate, category="started", snapshot=every(1)):
        start_cents: int

        def __init__(self, key: str) -> None:
            super().__init__(key)
            self.start_cents = start

        @applies
        def _(self, e: Scanned) -> None: ...

    return Started


def rounded(step: int) -> type[Any]:
    """Return an aggregate whose state has operators, as releases may define them."""

    @dataclass
    class Money:
        cents: int = 0

        if step == 1:

            def __add__(self, cents: int) -> Any:  # noqa: ANN401 -- Money, a local class
                return Money(self.cents + cents)

        else:

            def __add__(self, cents: int) -> Any:  # noqa: ANN401 -- Money, a local class
                return Money(self.cents + cents + 5)

    def _apply(self: Any, e: Scanned) -> None:  # noqa: ANN401 -- an aggregate without a name yet
        self.money = self.money + e.cents

    class Rounded(Aggregate, category="rounded", snapshot=every(1)):
        money: Money = Money()
        handler = applies(_apply)

    return Rounded


@pytest.mark.parametrize("release_of", [limited, started, rounded])
def test_other_defaults_and_values_do_not_use_the_snapshots_of_those_before(
    conn: Connection, release_of: Callable[[int], type[Any]]
) -> None:
    before, same, later = release_of(1), release_of(1), release_of(2)
    aggregate = before("1")
    aggregate.emit(Scanned(1, 1))
    store.save(conn, aggregate)
    assert store.save_snapshot(conn, aggregate)

    def snapshot_version(cls: type[Any]) -> int:
        history = store.load(conn, cls, "1")._history  # noqa: SLF001 -- what the load began with
        return int(history.snapshot_version)

    assert snapshot_version(same) == 1
    assert snapshot_version(later) == 0
