"""Given events, then rows or structures of Redis; and what no runner could repeat is found."""

import gc
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, ClassVar
from uuid import uuid4

import pytest
from sqlalchemy import BigInteger, Connection, Engine, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from datapatterns.cqrs import DELETE, Projection, RedisChanges, RedisProjection, on
from datapatterns.errors import EventTypeError
from datapatterns.event_sourcing import EventTypes, RecordedEvent, StreamId
from datapatterns.testing import ProjectionSpec, SpecError

pytestmark = pytest.mark.postgres

types = EventTypes()


@types.event("item.scanned")
@dataclass(frozen=True)
class Scanned:
    product: str
    cents: int


@types.event("item.withdrawn")
@dataclass(frozen=True)
class Withdrawn:
    product: str


class Base(DeclarativeBase):
    pass


class Sales(Base):
    __tablename__ = "sales"
    product: Mapped[str] = mapped_column(primary_key=True)
    cents: Mapped[int] = mapped_column(BigInteger, default=0)
    basket: Mapped[str | None]


class ByProduct(Projection, into=Sales, version=1):
    @on(Scanned, key=lambda e, _: e.product)
    def scanned(self, row: Sales, e: Scanned, meta: RecordedEvent) -> None:
        row.cents += e.cents
        row.basket = meta.stream.key

    @on(Withdrawn, key=lambda e, _: e.product)
    def withdrawn(self, _row: Sales, _e: Withdrawn, _meta: RecordedEvent) -> object:
        return DELETE


@pytest.fixture
def tables(conn: Connection) -> Iterator[Connection]:
    Base.metadata.create_all(conn)
    yield conn
    conn.rollback()


def test_a_table_holds_what_the_events_make_of_it(tables: Connection) -> None:
    spec = ProjectionSpec(ByProduct, tables, types=types).given(
        Scanned("milk", 149), Scanned("milk", 1), stream=StreamId("basket", "7")
    )

    spec.then_rows({"product": "milk", "cents": 150, "basket": "7"})
    spec.given(Withdrawn("milk"), Scanned("rice", 5)).then_rows({"product": "rice", "cents": 5})
    spec.given(Withdrawn("milk")).then_rows()


def test_nothing_is_left_and_what_was_there_does_not_count(tables: Connection) -> None:
    tables.execute(insert(Sales).values(product="milk", cents=7))

    ProjectionSpec(ByProduct, tables, types=types).given(Scanned("milk", 1)).then_rows(
        {"product": "milk", "cents": 1}
    )

    assert tables.execute(select(Sales.product, Sales.cents)).all() == [("milk", 7)]


def test_a_connection_outside_a_transaction_is_left_so(engine: Engine) -> None:
    Base.metadata.create_all(engine)
    with engine.connect() as conn:
        ProjectionSpec(ByProduct, conn, types=types).given(Scanned("a", 1)).then_rows({"cents": 1})
        assert not conn.in_transaction()


def test_other_rows_are_told(tables: Connection) -> None:
    with pytest.raises(SpecError) as failing:
        ProjectionSpec(ByProduct, tables, types=types).given(
            Scanned("milk", 1), Scanned("rice", 2)
        ).then_rows({"product": "milk", "cents": 2}, {"product": "rice", "cents": 2})

    assert str(failing.value) == (
        "the rows are others\n"
        "given     Scanned(product='milk', cents=1)\n"
        "          Scanned(product='rice', cents=2)\n"
        "expected  {'product': 'milk', 'cents': 2}\n"
        "          {'product': 'rice', 'cents': 2}\n"
        "got       {'product': 'milk', 'cents': 1}\n"
        "          {'product': 'rice', 'cents': 2}"
    )


def test_missing_and_surplus_rows_are_told(tables: Connection) -> None:
    spec = ProjectionSpec(ByProduct, tables, types=types).given(Scanned("milk", 1))

    for rows in [], [{"cents": 1}, {"cents": 1}]:
        with pytest.raises(SpecError, match="the rows are others"):
            spec.then_rows(*rows)


class Dashboard(RedisProjection, version=1):
    @on(Scanned)
    def _(self, changes: RedisChanges, e: Scanned, meta: RecordedEvent) -> None:
        changes.increment("totals", "cents", e.cents)
        changes.put("last", e.product, str(meta.version))
        changes.add_score("best", e.product)

    @on(Withdrawn)
    def _(self, changes: RedisChanges, e: Withdrawn, _meta: RecordedEvent) -> None:
        changes.remove_member("best", e.product)


def test_redis_would_hold_what_the_events_make_of_it() -> None:
    spec = ProjectionSpec(Dashboard, types=types).given(
        Scanned("milk", 149), Scanned("rice", 1), Scanned("milk", 149)
    )

    spec.then_hash("totals", {"cents": 299}).then_hash("last", {"milk": 3, "rice": 2})
    spec.given(Withdrawn("rice")).then_scores("best", {"milk": 2})
    with pytest.raises(SpecError, match="best is another"):
        spec.then_scores("best", {"milk": 2})


SEEN: Counter[str] = Counter()


class StateInModule(Projection, into=Sales, version=1):
    @on(Scanned, key=lambda e, _: e.product)
    def _(self, row: Sales, e: Scanned, _meta: RecordedEvent) -> None:
        SEEN[e.product] += e.cents
        row.cents = SEEN[e.product]


class StateInClass(RedisProjection, version=1):
    numbers: ClassVar[dict[str, int]] = {}

    @on(Scanned)
    def _(self, changes: RedisChanges, e: Scanned, _meta: RecordedEvent) -> None:
        changes.put("numbers", e.product, len(self.numbers))
        self.numbers[f"{e.product} {len(self.numbers)}"] = e.cents


class StateOfType(RedisProjection, version=1):
    before = 0

    @on(Scanned)
    def _(self, changes: RedisChanges, e: Scanned, _meta: RecordedEvent) -> None:
        changes.put("numbers", e.product, self.before)
        type(self).before += 1


class StateInInstance(RedisProjection, version=1):
    def __init__(self) -> None:
        self.before = ""

    @on(Scanned)
    def _(self, changes: RedisChanges, e: Scanned, _meta: RecordedEvent) -> None:
        changes.put("before", e.product, self.before)
        self.before = e.product


def test_those_who_time_the_collector_of_garbage_are_no_handlers() -> None:
    class Wasteful(RedisProjection, version=1):
        @on(Scanned)
        def _(self, changes: RedisChanges, e: Scanned, _meta: RecordedEvent) -> None:
            circles: list[list[Any]] = [[] for _ in range(100_000)]
            changes.put("kept", e.product, len(circles))

    def clocked(_phase: str, _info: dict[str, int]) -> None:
        time.perf_counter()

    gc.callbacks.append(clocked)
    try:
        ProjectionSpec(Wasteful, types=types).given(Scanned("milk", 1)).then_hash(
            "kept", {"milk": 100_000}
        )
    finally:
        gc.callbacks.remove(clocked)
    assert gc.isenabled()


def test_state_in_a_module_is_found_by_a_rebuild(tables: Connection) -> None:
    with pytest.raises(SpecError, match=r"(?s)a rebuild gives another.*pages     \[1\]"):
        ProjectionSpec(StateInModule, tables, types=types).given(Scanned("milk", 1)).then_rows(
            {"cents": 1}
        )


@pytest.mark.parametrize("projection", [StateInClass, StateOfType])
def test_state_in_the_class_is_found_by_a_rebuild(projection: type[RedisProjection]) -> None:
    with pytest.raises(SpecError, match="a rebuild gives another"):
        ProjectionSpec(projection, types=types).given(Scanned("milk", 1)).then_hash("numbers", {})


def test_state_in_the_instance_is_found_by_other_pages() -> None:
    with pytest.raises(SpecError, match=r"(?s)a page for each event gives another.*\[1, 1\]"):
        ProjectionSpec(StateInInstance, types=types).given(
            Scanned("milk", 1), Scanned("rice", 1)
        ).then_hash("before", {"milk": "", "rice": "milk"})


@pytest.mark.parametrize(
    ("now", "name"),
    [
        (lambda: datetime.now(UTC).year, r"datetime\.now\(\)"),
        (lambda: date.today().year, r"date\.today\(\)"),  # noqa: DTZ011 -- that is the test
        (lambda: int(time.time()) // 10**6, r"time\.time\(\)"),
        (lambda: random.randrange(1), "random"),  # noqa: S311 -- no secret
        (lambda: uuid4().version, r"os\.urandom\(\)"),
    ],
)
def test_clock_and_chance_are_found_even_if_nothing_differs_today(now: Any, name: str) -> None:  # noqa: ANN401
    class Clocked(RedisProjection, version=1):
        @on(Scanned)
        def _(self, changes: RedisChanges, _e: Scanned, _meta: RecordedEvent) -> None:
            changes.put("latest", "at", now())

    with pytest.raises(SpecError, match=rf"(?s)depends on more.*{name} in .*test_spec_projection"):
        ProjectionSpec(Clocked, types=types).given(Scanned("milk", 1)).then_hash("latest", {})


def test_documents_are_those_that_the_events_make_of_them() -> None:
    class Baskets(RedisProjection, version=1):
        @on(Scanned)
        def _(self, changes: RedisChanges, e: Scanned, meta: RecordedEvent) -> None:
            changes.update_json("baskets", meta.stream.key, lambda d, c: [*(d or []), c], e.cents)

    spec = ProjectionSpec(Baskets, types=types).given(Scanned("milk", 1), Scanned("tea", 2))

    spec.then_documents("baskets", {1: [1, 2]})
    with pytest.raises(SpecError, match="baskets is another"):
        spec.then_documents("baskets", {1: [2, 1]})


def test_what_a_function_that_folds_documents_reads_from_the_clock_is_found() -> None:
    class Clocked(RedisProjection, version=1):
        @on(Scanned)
        def _(self, changes: RedisChanges, e: Scanned, _meta: RecordedEvent) -> None:
            changes.update_json("scans", e.product, lambda _: int(time.time()) // 10**6)

    with pytest.raises(SpecError, match=r"(?s)depends on more.*time\.time\(\) in .*test_spec_proj"):
        ProjectionSpec(Clocked, types=types).given(Scanned("milk", 1)).then_documents("scans", {})


def test_a_key_that_depends_on_chance_is_found(tables: Connection) -> None:
    class Scattered(Projection, into=Sales, version=1):
        @on(Scanned, key=lambda *_: str(random.randrange(1)))  # noqa: S311 -- no secret
        def _(self, row: Sales, e: Scanned, _meta: RecordedEvent) -> None:
            row.cents += e.cents

    with pytest.raises(SpecError, match="depends on more"):
        ProjectionSpec(Scattered, tables, types=types).given(Scanned("milk", 1)).then_rows()


def test_times_of_the_event_may_be_used() -> None:
    class Timed(RedisProjection, version=1):
        @on(Scanned)
        def _(self, changes: RedisChanges, _e: Scanned, meta: RecordedEvent) -> None:
            changes.put("latest", "at", f"{meta.recorded_at:%S}")

    ProjectionSpec(Timed, types=types).given(Scanned("a", 1), Scanned("b", 1)).then_hash(
        "latest", {"at": "02"}
    )


def test_an_event_that_cannot_be_applied_is_told(tables: Connection) -> None:
    with pytest.raises(SpecError, match=r"(?s)cannot be applied: DataError.*given     Scanned"):
        ProjectionSpec(ByProduct, tables, types=types).given(
            Scanned("milk", 2**62), Scanned("milk", 2**62)
        ).then_rows()
    assert tables.scalar(select(func.count()).select_from(Sales)) == 0


def once_by_position(conn: Connection, page: Sequence[RecordedEvent]) -> None:
    """Keep the position of the latest event in its row, and apply none twice."""
    for recorded in page:
        upsert = insert(Sales).values(
            product=recorded.data["product"],
            cents=recorded.data["cents"],
            basket=f"{recorded.position:06}",
        )
        conn.execute(
            upsert.on_conflict_do_update(
                index_elements=["product"],
                set_={
                    "cents": Sales.cents + upsert.excluded.cents,
                    "basket": upsert.excluded.basket,
                },
                where=Sales.basket < upsert.excluded.basket,
            )
        )


def each_time(conn: Connection, page: Sequence[RecordedEvent]) -> None:
    for recorded in page:
        upsert = insert(Sales).values(
            product=recorded.data["product"], cents=recorded.data["cents"]
        )
        conn.execute(
            upsert.on_conflict_do_update(
                index_elements=["product"],
                set_={"cents": Sales.cents + upsert.excluded.cents},
            )
        )


def test_a_projector_of_ones_own_must_bear_a_page_that_comes_twice(tables: Connection) -> None:
    scanned = [Scanned("milk", 1), Scanned("milk", 2), Scanned("rice", 4)]
    ProjectionSpec(once_by_position, tables, into=[Sales], types=types).given(*scanned).then_rows(
        {"product": "milk", "cents": 3}, {"product": "rice", "cents": 4}, into=Sales
    )

    with pytest.raises(SpecError) as failing:
        ProjectionSpec(each_time, tables, into=[Sales], types=types).given(
            Scanned("milk", 1)
        ).then_rows({"product": "milk", "cents": 1})

    assert "a page that comes twice gives another read model" in str(failing.value)
    assert "'cents': 1, 'basket': None} first, {'product': 'milk', 'cents': 2" in str(failing.value)


def test_what_is_missing_is_told(tables: Connection) -> None:
    with pytest.raises(TypeError, match="give the connection"):
        ProjectionSpec(ByProduct)  # type: ignore[arg-type] # that is the test
    with pytest.raises(TypeError, match="into="):
        ProjectionSpec(each_time, tables)  # type: ignore[call-overload] # that is the test
    with pytest.raises(EventTypeError):
        ProjectionSpec(Dashboard).given(Scanned("milk", 1))
