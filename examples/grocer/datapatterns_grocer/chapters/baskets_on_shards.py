"""Households and their baskets, spread over four servers."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import NamedTuple

from sqlalchemy import Select, func, select

from datapatterns.sharding import ShardCluster
from datapatterns_grocer.chapters.receipts import copy_rows
from datapatterns_grocer.dataset import Line
from datapatterns_grocer.model import (
    HOUSEHOLDS,
    BasketProduct,
    BasketRow,
    Household,
    Sharded,
    loyalty_number,
)
from datapatterns_grocer.screen import milliseconds, money
from datapatterns_grocer.stage import Stage
from datapatterns_grocer.stopwatch import median_seconds
from datapatterns_grocer.truth import Check, compare

HOUSEHOLD = ("household_id", "loyalty_number", "baskets")
PRODUCT = ("household_id", "basket_id", "product_id")
BASKET = ("household_id", "basket_id", "store_id", "week", "lines", "cents", "paid_at")
STORES_SHOWN = 5
SHARDS = 4
KEPT_BACK = 600
"""How many baskets tills write while shards come and go, at most; never more than half of all."""


class Row(NamedTuple):
    """A row of the table of baskets."""

    household_id: int
    basket_id: int
    store_id: int
    week: int
    lines: int
    cents: int
    paid_at: object


class Paid(NamedTuple):
    """A basket that was paid.

    Attributes:
        row: What is kept of it.
        products: What it held.
    """

    row: Row
    products: frozenset[int]


def play(stage: Stage) -> None:
    """Place the rows, read one household from its shard, and ask all shards at once."""
    stage.screen.heading(
        "Sharding",
        "Households and baskets on four PostgreSQL servers, by household: 32 buckets, 4 shards.",
    )
    with closing(stage.cluster(SHARDS)) as cluster:
        cluster.create_map()
        for engine in cluster.engines.values():
            Sharded.metadata.create_all(engine)
        _place(stage, cluster)
        _show_the_distribution(stage, cluster)
        _shop(stage, cluster)
        _read_one_household(stage, cluster)
        _total_by_store(stage, cluster)


def verify(stage: Stage) -> Iterator[Check]:
    """Compare every row of every shard, and what the shards say together, with the files."""
    with closing(stage.cluster()) as cluster, cluster.session(scatter=True) as s:
        columns = [getattr(BasketRow, name) for name in BASKET]
        baskets = s.execute(select(*columns)).all()
        households = s.execute(select(Household.household_id, Household.baskets)).all()
        totals = s.execute(_totals_by_store()).all()
    yield compare(
        "shards: every basket, to the cent",
        derived=baskets,
        truth=stage.dataset.rows(
            "SELECT household_id, basket_id, store_id, week, count(*), sum(cents), paid_at"
            " FROM sold GROUP BY ALL"
        ),
    )
    yield compare(
        "shards: how many baskets each household has",
        derived=households,
        truth=stage.dataset.rows(
            "SELECT household_id, count(DISTINCT basket_id) FROM sold GROUP BY ALL"
        ),
    )
    yield compare(
        "shards: totals of every store, merged",
        derived=totals,
        truth=stage.dataset.rows(
            "SELECT store_id, count(DISTINCT basket_id), sum(cents) FROM sold GROUP BY ALL"
        ),
    )


def kept_back(stage: Stage) -> list[Paid]:
    """Return the baskets that are not placed but come in later, while shards come and go."""
    return _parted(stage)[1]


def placed_before(stage: Stage) -> list[Paid]:
    """Return the baskets that were there before any till wrote one."""
    return _parted(stage)[0]


def store(cluster: ShardCluster, paid: Paid) -> None:
    """Write a basket and count it, in one transaction of its household's."""
    household_id, basket_id = paid.row.household_id, paid.row.basket_id
    with cluster.on(HOUSEHOLDS, household_id=household_id) as session, session.begin():
        session.add(BasketRow(**paid.row._asdict()))
        session.add_all(
            BasketProduct(household_id=household_id, basket_id=basket_id, product_id=product_id)
            for product_id in sorted(paid.products)
        )
        household = session.get_one(Household, household_id, with_for_update=True)
        household.baskets += 1


def _place(stage: Stage, cluster: ShardCluster) -> None:
    baskets, later = _parted(stage)
    counted = Counter(basket.row.household_id for basket in baskets)
    counted.update({basket.row.household_id: 0 for basket in later})
    counted.update({lines[0].household_id: 0 for lines in stage.live})
    told = [(each, loyalty_number(each), count) for each, count in counted.items()]
    households = cluster.placed(HOUSEHOLDS, told, key=lambda row: row[0])
    placed = cluster.placed(HOUSEHOLDS, baskets, key=lambda basket: basket.row.household_id)
    with stage.screen.progress("placing baskets", total=len(baskets)) as advance:
        for shard in cluster.engines:
            rows = placed.get(shard, [])
            with cluster.begin_bulk(HOUSEHOLDS, shard) as conn:
                copy_rows(conn, Household.__tablename__, HOUSEHOLD, households.get(shard, []))
                copy_rows(conn, BasketRow.__tablename__, BASKET, (each.row for each in rows))
                copy_rows(conn, BasketProduct.__tablename__, PRODUCT, _products(rows))
            advance(len(rows))


def _products(baskets: Iterable[Paid]) -> Iterator[tuple[int, int, int]]:
    for basket in baskets:
        for product_id in basket.products:
            yield basket.row.household_id, basket.row.basket_id, product_id


def _parted(stage: Stage) -> tuple[list[Paid], list[Paid]]:
    """Return the baskets that are placed, and those that come in later."""
    baskets = [_paid(lines) for lines in stage.loaded_baskets()]
    placed = len(baskets) - min(KEPT_BACK, len(baskets) // 2)
    return baskets[:placed], baskets[placed:]


def _show_the_distribution(stage: Stage, cluster: ShardCluster) -> None:
    stage.screen.bars(
        {
            stats.shard: next(t.rows for t in stats.tables if t.table == "basket")
            for stats in cluster.stats()
        },
        "baskets",
    )


def _shop(stage: Stage, cluster: ShardCluster) -> None:
    """Store the live baskets as an application does, each in its household's transaction."""
    for lines in stage.live:
        store(cluster, _paid(lines))


def _read_one_household(stage: Stage, cluster: ShardCluster) -> None:
    household_id = stage.live[0][0].household_id
    shard = cluster.router.map_of(HOUSEHOLDS).shard_of(household_id)
    mine = select(func.count(), func.sum(BasketRow.cents)).where(
        BasketRow.household_id == household_id
    )
    with cluster.on(HOUSEHOLDS, household_id=household_id) as session:
        took = median_seconds(lambda: session.execute(mine).one())
        baskets, cents = session.execute(mine).one()
    stage.screen.say(
        f"household {household_id} lives on {shard}: {baskets} baskets, {money(int(cents))}"
        f" dollars, read from that server alone in {milliseconds(took)}"
    )


def _total_by_store(stage: Stage, cluster: ShardCluster) -> None:
    best = _totals_by_store().order_by(func.sum(BasketRow.cents).desc()).limit(STORES_SHOWN)
    with cluster.session(scatter=True) as session:
        took = median_seconds(lambda: session.execute(best).all())
        rows = session.execute(best).all()
    stage.screen.say(
        f"the best stores, asked of all shards at once and merged: {milliseconds(took)}"
    )
    stage.screen.table(
        ["store", "baskets", "dollars"],
        [[str(store), baskets, money(int(cents))] for store, baskets, cents in rows],
    )


def _totals_by_store() -> Select[int, int, int]:
    return select(BasketRow.store_id, func.count(), func.sum(BasketRow.cents)).group_by(
        BasketRow.store_id
    )


def _paid(lines: list[Line]) -> Paid:
    first = lines[0]
    row = Row(
        first.household_id,
        first.basket_id,
        first.store_id,
        first.week,
        len(lines),
        sum(line.cents for line in lines),
        first.paid_at,
    )
    return Paid(row, frozenset(line.product_id for line in lines))
