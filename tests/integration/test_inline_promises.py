"""What could slip past a projection that is kept inline, or come out differently from a replay."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from decimal import Decimal
from uuid import uuid4

import pytest
from psycopg.errors import ObjectNotInPrerequisiteState
from sqlalchemy import CHAR, Connection, Engine, Numeric, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from datapatterns.cqrs import InlineProjections, Projection, Projections, on
from datapatterns.cqrs.tables import verifying
from datapatterns.cqrs.tables.replaying import AnyReplay
from datapatterns.cqrs.tables.verifying import Sight, TableVerifier
from datapatterns.errors import (
    InlineProjectionError,
    IsolationLevelError,
    VersionConflictError,
    WritersInTheWayError,
)
from datapatterns.event_sourcing import (
    ANY,
    EventStore,
    ImportedEvent,
    Position,
    RecordedEvent,
    StreamId,
)
from tests.fixtures.blocking import until_blocked_by
from tests.fixtures.read_models import (
    DoorOpened,
    ItemScanned,
    SalesByProduct,
    append,
    append_all,
    create_tables,
    sales,
)

pytestmark = pytest.mark.postgres

PLAIN = EventStore()
STORE = EventStore(inline=InlineProjections((SalesByProduct,)))
PROJECTIONS = Projections(STORE)
IDS = [uuid4()]


@pytest.fixture
def shop(engine: Engine) -> Engine:
    create_tables(engine)
    append_all(engine, STORE, [ItemScanned("milk", 10), ItemScanned("tea", 1)])
    PROJECTIONS.make_inline(engine, SalesByProduct)
    return engine


# -- Who appends in a transaction in which somebody has kept it -----------------------------------


def kept(conn: Connection) -> None:
    append(conn, STORE, [ItemScanned("milk", 1)])


def of_other_kinds(conn: Connection) -> None:
    append(conn, STORE, [DoorOpened()])


def repeated(conn: Connection) -> None:
    for _ in range(2):
        stream = StreamId("basket", "repeated")
        STORE.append(conn, stream, [ItemScanned("milk", 1)], expected_version=0, event_ids=IDS)


def in_conflict(conn: Connection) -> None:
    for event in (ItemScanned("milk", 1), DoorOpened()):
        with suppress(VersionConflictError):
            STORE.append(conn, StreamId("basket", "1"), [event], expected_version=77)


def refused(conn: Connection) -> None:
    with suppress(InlineProjectionError):
        append(conn, STORE, [ItemScanned("milk", -1_000)])


WAYS = [kept, of_other_kinds, repeated, in_conflict, refused]


@pytest.mark.parametrize("before", WAYS)
def test_a_store_that_does_not_keep_it_is_refused_also_behind_one_that_does(
    shop: Engine, before: Callable[[Connection], None]
) -> None:
    with shop.begin() as conn:
        before(conn)
        with (
            pytest.raises(OperationalError, match="does not keep projection"),
            conn.begin_nested(),
        ):
            append(conn, PLAIN, [ItemScanned("milk", 1)])

    assert PROJECTIONS.verify(shop, SalesByProduct).matches


@pytest.mark.parametrize("before", WAYS)
def test_an_import_is_refused_also_behind_an_append(
    shop: Engine, before: Callable[[Connection], None]
) -> None:
    imported = [ImportedEvent(StreamId("basket", "i"), ItemScanned("milk", 1))]
    with shop.connect() as conn:
        before(conn)
        with pytest.raises(ObjectNotInPrerequisiteState, match="does not keep"):
            STORE.import_events(conn, imported, source="file", chunk=1)

    assert PROJECTIONS.verify(shop, SalesByProduct).matches


# -- Transactions that are none --------------------------------------------------------------------


@pytest.mark.parametrize("event", [ItemScanned("milk", 1), DoorOpened()])
def test_an_append_that_is_not_in_a_transaction_is_refused(shop: Engine, event: object) -> None:
    auto = shop.execution_options(isolation_level="AUTOCOMMIT")
    with auto.connect() as conn, pytest.raises(IsolationLevelError, match="autocommit"):
        STORE.append(conn, StreamId("basket", "1"), [event], expected_version=ANY)

    assert sales(shop)["milk"] == (1, 10, "1")


# -- Keys ------------------------------------------------------------------------------------------


class Base(DeclarativeBase):
    pass


class Padded(Base):
    __tablename__ = "padded_sales"
    product: Mapped[str] = mapped_column(CHAR(10), primary_key=True)
    quantity: Mapped[int] = mapped_column(default=0)


class Priced(Base):
    __tablename__ = "sales_by_price"
    price: Mapped[Decimal] = mapped_column(Numeric(10, 2), primary_key=True)
    quantity: Mapped[int] = mapped_column(default=0)


class SalesPadded(Projection, into=Padded, version=1):
    @on(ItemScanned, key=lambda e, _: e.product)
    def _(self, row: Padded, _e: ItemScanned, _meta: RecordedEvent) -> None:
        row.quantity += 1


class SalesByPrice(Projection, into=Priced, version=1):
    @on(ItemScanned, key=lambda e, _: Decimal(e.product))
    def _(self, row: Priced, _e: ItemScanned, _meta: RecordedEvent) -> None:
        row.quantity += 1


@pytest.mark.parametrize(
    ("projection", "early", "late"),
    [(SalesPadded, "milk", "milk  "), (SalesByPrice, "1.00", "1.004")],
)
def test_keys_that_only_the_database_finds_equal_lose_no_event(
    engine: Engine, projection: type[Projection], early: str, late: str
) -> None:
    Base.metadata.create_all(engine)
    store = EventStore(inline=InlineProjections((projection,)))
    Projections(store).make_inline(engine, projection)

    with engine.connect() as first, ThreadPoolExecutor(1) as pool:
        begun = first.begin()
        append(first, store, [ItemScanned(early, 1)])
        second = pool.submit(append_all, engine, store, [ItemScanned(late, 1)], basket="2")
        until_blocked_by(engine, first)
        begun.commit()
        with pytest.raises(InlineProjectionError, match="equal to the database"):
            second.result(timeout=20)

    assert Projections(store).verify(engine, projection).matches


# -- Verifying -------------------------------------------------------------------------------------


def test_verify_replays_what_was_appended_before_it_holds_anything(
    shop: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = append_all(shop, STORE, [ItemScanned("milk", 1)] * 5)
    began = list[Position]()

    def follow(verifier: TableVerifier, conn: Connection, replay: AnyReplay, sight: Sight) -> None:
        began.append(replay.position)
        followed(verifier, conn, replay, sight)

    followed = TableVerifier._follow  # noqa: SLF001 -- where it begins to hold a snapshot
    monkeypatch.setattr(TableVerifier, "_follow", follow)

    assert PROJECTIONS.verify(shop, SalesByProduct).matches
    assert began == [token]


# -- Fences that outlive their transaction's other locks -------------------------------------------


FENCE = text(
    "SELECT pg_advisory_xact_lock_shared(CAST(CAST(sequence AS bigint) AS int),"
    " CAST(pg_sequence_last_value(sequence) AS int))"
    " FROM (SELECT CAST(CAST('datapatterns.event_position' AS regclass) AS oid)) AS s (sequence)"
)


@contextmanager
def fence_behind_an_append(shop: Engine) -> Iterator[Connection]:
    """Append, and leave a fence before it, as a COMMIT does that is giving up its locks."""
    with shop.connect() as conn:
        conn.execute(FENCE)
        append_all(shop, STORE, [ItemScanned("milk", 1)])
        yield conn


@pytest.mark.parametrize("switch", [PROJECTIONS.make_async, PROJECTIONS.make_inline])
def test_a_switch_waits_for_the_fences_of_writers_that_have_ended(
    shop: Engine, switch: Callable[..., None]
) -> None:
    if switch == PROJECTIONS.make_inline:
        PROJECTIONS.make_async(shop, SalesByProduct)
    with fence_behind_an_append(shop), pytest.raises(WritersInTheWayError):
        switch(shop, SalesByProduct, timeout_seconds=0)

    switch(shop, SalesByProduct)
    PROJECTIONS.catch_up(shop, SalesByProduct)

    assert sales(shop)["milk"][0] == 2


def test_verify_waits_for_the_fences_of_writers_that_have_ended(
    shop: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "FENCE_SECONDS", 0.0)
    with fence_behind_an_append(shop), pytest.raises(WritersInTheWayError):
        PROJECTIONS.verify(shop, SalesByProduct)

    assert PROJECTIONS.verify(shop, SalesByProduct).matches


# -- In asyncio ------------------------------------------------------------------------------------


def test_a_unit_of_an_asynchronous_session_keeps_it(shop: Engine) -> None:
    async def buy() -> None:
        engine = create_async_engine(shop.url)
        async with AsyncSession(engine) as session:
            unit = STORE.unit(session)
            unit.append(StreamId("basket", "2"), [ItemScanned("milk", 1)], expected_version=ANY)
            await session.commit()
        await engine.dispose()

    asyncio.run(buy())

    assert sales(shop)["milk"] == (2, 11, "2")
    assert PROJECTIONS.verify(shop, SalesByProduct).matches
