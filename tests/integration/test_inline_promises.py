"""What could slip past a projection that is kept inline, or come out differently from a replay."""

from collections.abc import Callable
from contextlib import suppress
from uuid import uuid4

import pytest
from psycopg.errors import ObjectNotInPrerequisiteState
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import OperationalError

from datapatterns.cqrs import InlineProjections, Projections
from datapatterns.errors import InlineProjectionError, IsolationLevelError, VersionConflictError
from datapatterns.event_sourcing import ANY, EventStore, ImportedEvent, StreamId
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
