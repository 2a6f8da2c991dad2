"""What statements cannot read stops them; what could not be run for every version is refused."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from sqlalchemy import (
    BigInteger,
    Engine,
    Executable,
    FromClause,
    Table,
    bindparam,
    cast,
    delete,
    func,
    insert,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert as pg_insert

from datapatterns.cqrs import Projections, Reads, SetProjection, StoredShape, upsert
from datapatterns.errors import ProjectionDefinitionError, ProjectionStoppedError
from datapatterns.event_sourcing import (
    ANY,
    Codecs,
    EventStore,
    EventTypes,
    MessagePack,
    NewEvent,
    Personal,
    StreamId,
)
from tests.fixtures.people import keys
from tests.fixtures.read_models import ItemScanned, ProductSales, append_all
from tests.fixtures.set_models import (
    ProductTotal,
    TotalByProduct,
    create_tables,
    sums_by_product,
    totals,
)

pytestmark = pytest.mark.postgres

STORE = EventStore()
PROJECTIONS = Projections(STORE)
Statements = Executable | Iterable[Executable]
Tables = Mapping[type, Table[Any]]


@dataclass(frozen=True, slots=True)
class Sold:
    product: str
    cents: int


@dataclass(frozen=True, slots=True)
class SoldTo:
    product: str
    cents: int
    customer: str
    email: Annotated[str, Personal(subject="customer")]


@pytest.fixture
def shop(engine: Engine) -> Engine:
    create_tables(engine)
    return engine


def totals_of(reads: Reads) -> type[SetProjection]:
    class Totals(SetProjection, into=ProductTotal, version=1, reads=reads):
        def statements(self, events: FromClause, tables: Tables) -> Statements:
            return upsert(tables[ProductTotal], sums_by_product(events), add=["quantity", "cents"])

    return Totals


def sold(version: int = 1, *, name: str = "shop.sold", cents: object = 1) -> NewEvent:
    return NewEvent(name, {"product": "milk", "cents": cents}, schema_version=version)


def append(engine: Engine, store: EventStore, *events: object) -> None:
    with engine.begin() as conn:
        store.append(conn, StreamId("till", "1"), events, expected_version=ANY)


def stopped(engine: Engine, store: EventStore, projection: type[SetProjection]) -> str:
    with pytest.raises(ProjectionStoppedError) as refused:
        Projections(store).catch_up(engine, projection)
    return str(refused.value)


def test_an_older_version_stops_it_right_before(shop: Engine) -> None:
    types = EventTypes()
    types.event("shop.sold", version=2)(Sold)
    types.upcast("shop.sold", 1)(lambda data: data)
    append(shop, STORE, sold(2), sold(2), sold(1), sold(2))

    message = stopped(shop, EventStore(types=types), totals_of((Sold,)))

    assert "before shop.sold at position 3" in message
    assert "stored in version 1, which only Python lifts to shop.sold version 2" in message
    assert "StoredShape(name='shop.sold', version=1)" in message
    assert totals(shop) == {"milk": (2, 2)}
    with shop.begin() as conn:
        (status,) = PROJECTIONS.status(conn)
    assert (status.position, status.error and status.error["position"]) == (2, 3)


def test_an_older_version_is_read_as_it_is_if_the_projection_says_so(shop: Engine) -> None:
    types = EventTypes()
    types.event("shop.sold", version=2)(Sold)
    types.upcast("shop.sold", 1)(lambda data: data)
    append(shop, STORE, sold(2), sold(1))
    projection = totals_of((Sold, StoredShape("shop.sold", 1)))

    Projections(EventStore(types=types)).catch_up(shop, projection)

    assert totals(shop) == {"milk": (2, 2)}


def test_a_renamed_event_stops_it(shop: Engine) -> None:
    types = EventTypes()
    types.event("shop.sold", renamed_from="till.sold")(Sold)
    append(shop, STORE, sold(), sold(name="till.sold"))

    assert "before till.sold at position 2" in stopped(
        shop, EventStore(types=types), totals_of((Sold,))
    )
    assert totals(shop) == {"milk": (1, 1)}


def test_an_event_that_became_several_stops_whoever_reads_one_of_them(shop: Engine) -> None:
    types = EventTypes()
    types.event("shop.sold")(Sold)
    types.upcast("till.closed", 1, into={"shop.sold": 1})(lambda data: [("shop.sold", data)])
    append(shop, STORE, sold(), sold(name="till.closed"))

    assert "only Python lifts to shop.sold version 1" in stopped(
        shop, EventStore(types=types), totals_of((Sold,))
    )


def test_a_newer_version_stops_it(shop: Engine) -> None:
    types = EventTypes()
    types.event("shop.sold")(Sold)
    append(shop, STORE, sold(), sold(2))

    assert "deploy the code that wrote it" in stopped(
        shop, EventStore(types=types), totals_of((Sold,))
    )


def today(types: EventTypes) -> None:
    types.event("shop.sold", version=2)(Sold)


def given_up(types: EventTypes) -> None:
    types.dropped("shop.sold", reason="nobody asks any more")


@pytest.mark.parametrize("declare", [today, given_up, lambda _: None])
def test_other_versions_of_a_name_that_is_read_as_stored_stop_it(
    shop: Engine, declare: Callable[[EventTypes], None]
) -> None:
    types = EventTypes()
    declare(types)
    append(shop, STORE, sold(), sold(2))

    message = stopped(shop, EventStore(types=types), totals_of((StoredShape("shop.sold", 1),)))

    assert "position 2" in message
    assert totals(shop) == {"milk": (1, 1)}


def test_what_was_dropped_or_is_of_no_concern_is_passed(shop: Engine) -> None:
    types = EventTypes()
    types.event("shop.sold")(Sold)
    types.dropped("shop.jested", reason="nobody laughed")
    append(shop, STORE, sold(), sold(name="shop.jested"), sold(7, name="shop.unknown"))

    done = Projections(EventStore(types=types)).catch_up(shop, totals_of((Sold,)))

    assert (done.events, done.position) == (1, 3)


def test_data_that_a_codec_has_packed_stop_it(shop: Engine) -> None:
    types = EventTypes()
    types.event("shop.sold")(Sold)
    packed = EventStore(types=types, codecs=Codecs(MessagePack()))
    append(shop, EventStore(types=types), Sold("milk", 1))
    append(shop, packed, Sold("milk", 1))

    message = stopped(shop, packed, totals_of((Sold,)))

    assert "position 2" in message
    assert "codec" in message
    assert totals(shop) == {"milk": (1, 1)}


class CentsByStream(SetProjection, into=ProductTotal, version=1, reads=(StoredShape("shop.sold"),)):
    """Sums pass NULL by."""

    def statements(self, events: FromClause, tables: Tables) -> Statements:
        cents = cast(events.c.data["cents"].as_string(), BigInteger)
        sums = select(
            events.c.key.label("product"),
            func.count().label("quantity"),
            func.sum(cents).label("cents"),
        ).group_by(events.c.key)
        return upsert(tables[ProductTotal], sums, add=["quantity", "cents"])


class SoldByStream(SetProjection, into=ProductTotal, version=1, reads=(StoredShape("shop.sold"),)):
    """Does not look at the data."""

    def statements(self, events: FromClause, tables: Tables) -> Statements:
        counted = select(events.c.key.label("product"), func.count().label("quantity")).group_by(
            events.c.key
        )
        return upsert(tables[ProductTotal], counted, add=["quantity"])


def test_packed_data_stop_whoever_looks_at_them_and_nobody_else(shop: Engine) -> None:
    packed = EventStore(codecs=Codecs(MessagePack()))
    append(shop, packed, sold(name="shop.other"))
    append(shop, STORE, sold(), sold())
    append(shop, packed, sold())

    assert "position 4" in stopped(shop, packed, CentsByStream)
    assert totals(shop) == {"1": (2, 2)}
    with shop.begin() as conn:
        conn.execute(text("DELETE FROM datapatterns.projection_shard"))
        conn.execute(text("DELETE FROM datapatterns.projection_table"))
        conn.execute(text("DELETE FROM datapatterns.projection"))
        conn.execute(text("DELETE FROM product_total"))
    PROJECTIONS.catch_up(shop, SoldByStream)
    assert totals(shop) == {"1": (3, None)}


def test_personal_fields_stop_it_unless_it_takes_them_as_stored(shop: Engine) -> None:
    types = EventTypes()
    types.event("shop.sold_to")(SoldTo)
    store = EventStore(types=types, keys=keys)
    append(shop, store, SoldTo("milk", 1, "7", "a@example.org"))
    aware = totals_of((StoredShape("shop.sold_to", 1),))

    assert "personal fields are encrypted" in stopped(shop, store, totals_of((SoldTo,)))
    assert totals(shop) == {}
    Projections(store).catch_up(shop, aware)
    assert totals(shop) == {"milk": (1, 1)}


def test_verify_and_rebuild_stop_before_the_same_event(shop: Engine) -> None:
    types = EventTypes()
    types.event("shop.sold")(Sold)
    append(shop, STORE, sold(), sold(2))
    projections = Projections(EventStore(types=types))

    with pytest.raises(ProjectionStoppedError, match="position 2"):
        projections.rebuild(shop, totals_of((Sold,)))

    assert totals(shop) == {}


@pytest.mark.parametrize("page_events", [1, 4, 100])
@pytest.mark.parametrize("cents", ["much", 2**63 - 1])
def test_an_event_at_which_a_statement_fails_is_found(
    shop: Engine, cents: object, page_events: int
) -> None:
    shape = (StoredShape("shop.sold"),)
    append(shop, STORE, *[sold()] * 5, sold(cents=cents), *[sold()] * 5)
    projection = totals_of(shape)

    with pytest.raises(ProjectionStoppedError, match=r"before shop.sold at position 6"):
        PROJECTIONS.catch_up(shop, projection, page_events=page_events)
    after = totals(shop)
    with pytest.raises(ProjectionStoppedError, match=r"before shop.sold at position 6"):
        PROJECTIONS.catch_up(shop, projection, page_events=page_events)

    assert after == totals(shop) == {"milk": (5, 5)}
    with pytest.raises(ProjectionStoppedError, match=r"before shop.sold at position 6"):
        PROJECTIONS.rebuild(shop, projection, page_events=page_events)


def test_poison_before_an_event_that_cannot_be_read_is_found_first(shop: Engine) -> None:
    append(shop, STORE, sold(), sold(cents="much"), sold(2))
    projection = totals_of((StoredShape("shop.sold"),))

    assert "position 2" in stopped(shop, STORE, projection)
    with pytest.raises(ProjectionStoppedError, match="position 2"):
        PROJECTIONS.rebuild(shop, projection)


class Skipping(
    SetProjection,
    into=ProductTotal,
    version=1,
    reads=(StoredShape("shop.sold"),),
    on_poison="skip",
):
    def statements(self, events: FromClause, tables: Tables) -> Statements:
        return upsert(tables[ProductTotal], sums_by_product(events), add=["quantity", "cents"])


@pytest.mark.parametrize("page_events", [1, 2, 100])
def test_an_event_is_left_out_on_record_if_the_projection_says_so(
    shop: Engine, page_events: int
) -> None:
    append(shop, STORE, sold(), sold(cents="much"), *[sold()] * 3, sold(cents="more"), sold())

    done = PROJECTIONS.catch_up(shop, Skipping, page_events=page_events)

    assert (done.events, done.position) == (7, 7)
    assert totals(shop) == {"milk": (5, 5)}
    with shop.begin() as conn:
        skipped = PROJECTIONS.skipped(conn, Skipping)
        (status,) = PROJECTIONS.status(conn)
    assert [(one.position, one.key_digest, one.error) for one in skipped] == [
        (2, None, "DataError"),
        (6, None, "DataError"),
    ]
    assert status.error is None
    assert PROJECTIONS.verify(shop, Skipping, page_events=page_events).matches
    with shop.begin() as conn:
        conn.execute(text("DELETE FROM product_total"))
    assert not PROJECTIONS.verify(shop, Skipping).matches
    again = PROJECTIONS.rebuild(shop, Skipping, page_events=page_events)
    assert (again.events, again.position) == (7, 7)
    assert totals(shop) == {"milk": (5, 5)}
    with shop.begin() as conn:
        assert [one.position for one in PROJECTIONS.skipped(conn, Skipping)] == [2, 6]


def test_what_cannot_be_read_is_not_skipped(shop: Engine) -> None:
    append(shop, STORE, sold(), sold(2))
    packed = EventStore(codecs=Codecs(MessagePack()))

    assert "position 2" in stopped(shop, STORE, Skipping)
    with shop.begin() as conn:
        conn.execute(text("UPDATE datapatterns.projection_shard SET position = 2"))
    append(shop, packed, sold())
    assert "codec" in stopped(shop, packed, Skipping)
    with shop.begin() as conn:
        assert PROJECTIONS.skipped(conn, Skipping) == []


def test_a_constraint_that_is_checked_late_is_checked_at_once(shop: Engine) -> None:
    with shop.begin() as conn:
        conn.execute(text("CREATE TABLE price (cents bigint PRIMARY KEY)"))
        conn.execute(text("INSERT INTO price VALUES (1), (2)"))
        conn.execute(
            text(
                "ALTER TABLE product_total ADD FOREIGN KEY (cents) REFERENCES price"
                " DEFERRABLE INITIALLY DEFERRED"
            )
        )
    append(shop, STORE, *[sold()] * 3)

    assert "position 3" in stopped(shop, STORE, totals_of((StoredShape("shop.sold"),)))
    assert totals(shop) == {"milk": (2, 2)}


def test_a_missing_table_is_no_event_s_fault(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned("milk", 1)])
    PROJECTIONS.catch_up(shop, TotalByProduct)
    append_all(shop, STORE, [ItemScanned("milk", 1)])
    with shop.begin() as conn:
        conn.execute(text("ALTER TABLE product_total RENAME COLUMN cents TO pence"))

    with pytest.raises(Exception, match="UndefinedColumn"):
        PROJECTIONS.catch_up(shop, TotalByProduct)

    with shop.begin() as conn:
        (status,) = PROJECTIONS.status(conn)
    assert status.error is None


Give = Callable[[FromClause, Tables], Any]


def giving(give: Give) -> type[SetProjection]:
    class Giving(SetProjection, into=ProductTotal, version=1, reads=(ItemScanned,)):
        def statements(self, events: FromClause, tables: Tables) -> Statements:
            return give(events, tables)  # type: ignore[no-any-return] # what may be wrong

    return Giving


def hidden(_events: FromClause, tables: Tables) -> Any:  # noqa: ANN401 -- a statement
    gone = delete(ProductSales).returning(ProductSales.product).cte("gone")
    return insert(tables[ProductTotal]).from_select(["product"], select(gone.c.product))


REFUSED: dict[str, tuple[Give, str]] = {
    "the class itself": (
        lambda e, _: pg_insert(ProductTotal).from_select(["product"], select(e.c.key)),
        "writes product_total by itself",
    ),
    "the class's own table": (
        lambda _e, _t: delete(ProductTotal.metadata.tables["product_total"]),
        "writes product_total by itself",
    ),
    "another table": (lambda _e, _t: delete(ProductSales), "writes product_sales by itself"),
    "another table within": (hidden, "writes product_sales by itself"),
    "reads the class": (
        lambda _e, t: update(t[ProductTotal]).values(
            quantity=select(func.max(ProductTotal.quantity)).scalar_subquery()
        ),
        "names product_total by its mapped class",
    ),
    "reads the class's column": (
        lambda _e, t: delete(t[ProductTotal]).where(
            t[ProductTotal].c.product == ProductTotal.product
        ),
        "names product_total by its mapped class",
    ),
    "a query": (lambda e, _: select(e.c.key), "returns a Select"),
    "text": (lambda _e, _t: text("DELETE FROM product_total"), "returns a TextClause"),
    "nothing": (lambda _e, _t: [], "has no statements"),
    "no statement": (lambda _e, _t: None, "cannot be made: TypeError"),
    "an error": (lambda _e, t: t[ProductSales], "cannot be made: KeyError"),
    "the clock": (
        lambda e, t: insert(t[ProductTotal]).from_select(
            ["product", "quantity"], select(e.c.key, func.extract("epoch", func.now()))
        ),
        "calls now()",
    ),
    "chance": (
        lambda _e, t: update(t[ProductTotal]).values(quantity=func.random() * 6),
        "calls random()",
    ),
    "a parameter of its own": (
        lambda _e, t: delete(t[ProductTotal]).where(
            t[ProductTotal].c.product == bindparam("which")
        ),
        "has a parameter 'which'",
    ),
    "no column": (
        lambda e, t: upsert(t[ProductTotal], select(e.c.key.label("basket"))),
        "no column 'basket'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_statement_that_could_not_be_run_for_every_version_is_refused(
    shop: Engine, case: str
) -> None:
    give, told = REFUSED[case]
    append_all(shop, STORE, [ItemScanned("milk", 1)])

    with pytest.raises(ProjectionDefinitionError) as refused:
        PROJECTIONS.catch_up(shop, giving(give))

    assert told in str(refused.value)
    assert totals(shop) == {}


def test_values_of_its_own_are_fine(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned("milk", 1)])

    PROJECTIONS.catch_up(
        shop,
        giving(
            lambda e, t: upsert(
                t[ProductTotal],
                select(e.c.key.label("product"), literal(3).label("quantity")),
                put=["quantity"],
            )
        ),
    )

    assert totals(shop) == {"1": (3, None)}
