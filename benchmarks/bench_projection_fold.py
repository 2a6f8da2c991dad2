"""Fold a log into a table, 1,000 events a commit, beside a batch by hand and ``eventsourcing``."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Final

from sqlalchemy import URL

from benchmarks.baskets import DECODERS, Driver, ItemRemoved, ItemScanned, driver
from benchmarks.interleaving import Claim, Contestant
from benchmarks.rival import settings_of
from benchmarks.rival_projection import RivalRunner
from benchmarks.sales import PRODUCTS, Base, SalesByProduct, fill_log
from datapatterns import DataLayer
from datapatterns.cqrs import Projections

EVENTS: Final = 20_000
PAGE_EVENTS: Final = 1_000
RIVAL_EVENTS: Final = 1_000
"""Fewer, as each is a transaction."""

_TABLES: Final = """
CREATE TABLE read_by_hand (LIKE product_sales INCLUDING ALL);
CREATE TABLE added_by_hand (LIKE product_sales INCLUDING ALL);
CREATE TABLE checkpoint (name text PRIMARY KEY, position bigint NOT NULL);
INSERT INTO checkpoint VALUES ('read_by_hand', 0), ('added_by_hand', 0);
"""

_PAGE: Final = """
SELECT e.position, t.name, e.data::text
  FROM datapatterns.event e JOIN datapatterns.event_type t ON t.id = e.type_id
 WHERE e.position > %b ORDER BY e.position LIMIT %b
"""
_CHECKPOINT: Final = "SELECT position FROM checkpoint WHERE name = %b FOR UPDATE"
_MOVE: Final = "UPDATE checkpoint SET position = %b WHERE name = %b"
_ROWS: Final = """
SELECT r.product_id, r.quantity, r.cents FROM read_by_hand r
  JOIN unnest(%b::bigint[]) AS page(product_id) ON page.product_id = r.product_id
"""
_UNNESTED: Final = "SELECT * FROM unnest(%b::bigint[], %b::bigint[], %b::bigint[])"
_STORE: Final = f"""
INSERT INTO read_by_hand {_UNNESTED} ON CONFLICT (product_id)
DO UPDATE SET quantity = excluded.quantity, cents = excluded.cents
"""
_ADD: Final = f"""
INSERT INTO added_by_hand AS sales {_UNNESTED} ON CONFLICT (product_id)
DO UPDATE SET quantity = sales.quantity + excluded.quantity, cents = sales.cents + excluded.cents
"""

Figures = dict[int, list[int]]
"""Quantity and cents by product."""


@contextmanager
def claim() -> Iterator[Claim]:
    """From the first event to the last; the tables are emptied before, outside of the time."""
    with ExitStack() as stack:
        layer = stack.enter_context(DataLayer.embedded())
        url = layer.engine.url
        Base.metadata.create_all(layer.engine)
        conn = stack.enter_context(driver(url, autocommit=True))
        conn.execute(_TABLES)
        fill_log(layer, EVENTS)
        rival = stack.enter_context(RivalRunner.filled(settings_of(url), events=RIVAL_EVENTS))
        yield Claim(
            f"fold {EVENTS:,} events into {PRODUCTS:,} rows, {PAGE_EVENTS:,} a commit",
            "events",
            [
                Contestant("Projections.catch_up", "ours", _ours(layer), _again(url)),
                Contestant(
                    "psycopg: rows read, folded, one upsert",
                    "limit",
                    partial(_by_hand, conn, "read_by_hand", _fold_and_store),
                    partial(_by_hand_again, conn, "read_by_hand"),
                ),
                Contestant(
                    "psycopg: folded, added by one upsert",
                    "limit",
                    partial(_by_hand, conn, "added_by_hand", _fold_and_add),
                    partial(_by_hand_again, conn, "added_by_hand"),
                ),
                Contestant("eventsourcing's runner", "rival", rival.run, rival.reset),
            ],
        )
        _check(conn)


def _ours(layer: DataLayer) -> Callable[[], int]:
    projections = Projections(layer.events)

    def run() -> int:
        return projections.catch_up(layer.engine, SalesByProduct, page_events=PAGE_EVENTS).events

    return run


def _again(url: URL) -> Callable[[], None]:
    def again() -> None:
        with driver(url, autocommit=True) as conn:
            conn.execute("TRUNCATE product_sales")
            conn.execute("UPDATE datapatterns.projection_shard SET position = 0")
            conn.execute("CHECKPOINT")

    return again


def _by_hand(
    conn: Driver, name: str, apply: Callable[[Driver, list[tuple[str, bytes]]], None]
) -> int:
    count = 0
    with conn.cursor(binary=True) as cursor:
        while True:
            with conn.transaction():
                cursor.execute(_CHECKPOINT, [name], prepare=True)
                ((after,),) = cursor.fetchall()
                rows = cursor.execute(_PAGE, [after, PAGE_EVENTS], prepare=True).fetchall()
                if not rows:
                    return count
                apply(conn, [row[1:] for row in rows])
                cursor.execute(_MOVE, [rows[-1][0], name], prepare=True)
            count += len(rows)


def _by_hand_again(conn: Driver, name: str) -> None:
    conn.execute(f"TRUNCATE {name}")
    conn.execute("UPDATE checkpoint SET position = 0 WHERE name = %s", [name])
    conn.execute("CHECKPOINT")


def _fold_and_store(conn: Driver, page: list[tuple[str, bytes]]) -> None:
    events = [DECODERS[name].decode(data) for name, data in page]
    with conn.cursor(binary=True) as cursor:
        wanted = list({event.product_id for event in events})
        found = cursor.execute(_ROWS, [wanted], prepare=True).fetchall()
        figures = {product: [quantity, cents] for product, quantity, cents in found}
        _fold(events, figures)
        cursor.execute(_STORE, _columns(figures), prepare=True)


def _fold_and_add(conn: Driver, page: list[tuple[str, bytes]]) -> None:
    figures: Figures = {}
    _fold([DECODERS[name].decode(data) for name, data in page], figures)
    with conn.cursor(binary=True) as cursor:
        cursor.execute(_ADD, _columns(figures), prepare=True)


def _fold(events: list[ItemScanned | ItemRemoved], figures: Figures) -> None:
    for event in events:
        sign = 1 if isinstance(event, ItemScanned) else -1
        row = figures.get(event.product_id)
        if row is None:
            row = figures[event.product_id] = [0, 0]
        row[0] += sign * event.quantity
        row[1] += sign * event.cents


def _columns(figures: Figures) -> list[list[int]]:
    return [
        [*figures],
        [quantity for quantity, _ in figures.values()],
        [cents for _, cents in figures.values()],
    ]


def _check(conn: Driver) -> None:
    tables = ("product_sales", "read_by_hand", "added_by_hand")
    ours, *others = (
        conn.execute(f"SELECT * FROM {table} ORDER BY product_id").fetchall() for table in tables
    )
    assert len(ours) == PRODUCTS
    assert all(other == ours for other in others)
