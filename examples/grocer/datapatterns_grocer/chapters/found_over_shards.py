"""Households by their loyalty number, baskets by a product: found on whichever shard they are."""

from collections.abc import Iterator
from contextlib import closing

from sqlalchemy import Select, select

from datapatterns.index_table import IndexTable
from datapatterns.sharding import ShardCluster
from datapatterns_grocer.chapters.baskets_on_shards import SHARDS
from datapatterns_grocer.model import (
    BY_LOYALTY_NUMBER,
    BY_PRODUCT,
    OVER_SHARDS,
    BasketProduct,
    Household,
    loyalty_number,
)
from datapatterns_grocer.screen import milliseconds
from datapatterns_grocer.stage import Stage
from datapatterns_grocer.stopwatch import median_seconds
from datapatterns_grocer.truth import Check, compare


def play(stage: Stage) -> None:
    """Build both index tables beside the rows, and compare them with asking every shard."""
    stage.screen.heading(
        "Index tables over shards",
        "Rows lie by household. Whose is this loyalty number, and which baskets held this product?",
    )
    with closing(stage.cluster(SHARDS)) as cluster:
        OVER_SHARDS.create(cluster)
        for name, report in OVER_SHARDS.build(cluster).items():
            stage.screen.say(
                f"{name}: built while others could write; {report.rows:,} rows compared with"
                f" their entries, {report.missing} missing"
            )
        stage.screen.table(
            ["asked for", "index table", "all shards"],
            [_household(stage, cluster), _baskets(stage, cluster)],
        )


def verify(stage: Stage) -> Iterator[Check]:
    """Compare every entry with the files, also of baskets that came while buckets moved."""
    with closing(stage.cluster()) as cluster, cluster.session(scatter=True) as session:
        households = session.execute(_entries(BY_LOYALTY_NUMBER, "loyalty_number")).all()
        products = session.execute(_entries(BY_PRODUCT, "product_id", "basket_id")).all()
    yield compare(
        "index over shards: the loyalty number of every household",
        derived=households,
        truth=[
            (loyalty_number(household_id), household_id)
            for (household_id,) in stage.dataset.rows("SELECT DISTINCT household_id FROM sold")
        ],
    )
    yield compare(
        "index over shards: the baskets of every product",
        derived=products,
        truth=stage.dataset.rows("SELECT DISTINCT product_id, basket_id, household_id FROM sold"),
    )


def _household(stage: Stage, cluster: ShardCluster) -> list[str]:
    number = loyalty_number(stage.live[0][0].household_id)
    scatter = select(Household.household_id).where(Household.loyalty_number == number)
    with cluster.session(scatter=True) as session:
        [found] = BY_LOYALTY_NUMBER.lookup(session, number)
        assert session.scalars(_everywhere(scatter)).one() == found.household_id
        return [
            f"household of {number}",
            milliseconds(median_seconds(lambda: BY_LOYALTY_NUMBER.lookup(session, number))),
            milliseconds(median_seconds(lambda: session.scalars(_everywhere(scatter)).one())),
        ]


def _baskets(stage: Stage, cluster: ShardCluster) -> list[str]:
    product_id = stage.live[0][0].product_id
    scatter = select(BasketProduct.basket_id).where(BasketProduct.product_id == product_id)
    with cluster.session(scatter=True) as session:
        found = BY_PRODUCT.lookup(session, product_id)
        held = session.scalars(_everywhere(scatter)).all()
        assert {row.basket_id for row in found} == set(held)
        return [
            f"{len(held)} baskets with product {product_id}",
            milliseconds(median_seconds(lambda: BY_PRODUCT.lookup(session, product_id))),
            milliseconds(median_seconds(lambda: session.scalars(_everywhere(scatter)).all())),
        ]


def _everywhere(statement: Select[int]) -> Select[int]:
    """Return the statement as one for all shards, which know no index of their own."""
    return statement.execution_options(index=None)


def _entries(index: IndexTable, *names: str) -> Select[int]:
    table = OVER_SHARDS.find(index.name).table
    return select(*(table.c[name] for name in (*names, "household_id")))
