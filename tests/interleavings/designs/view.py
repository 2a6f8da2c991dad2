"""Sums kept beside their rows by dirty markers: then equal to the query (M1, M4, M5)."""

from collections.abc import Callable
from functools import partial

from sqlalchemy import text

from datapatterns.testing.interleaving import Outcome
from tests.interleavings.designs.design import Design, Stage, Tasks

TABLES = """
CREATE TABLE line (product int NOT NULL, quantity int NOT NULL);
CREATE TABLE sold (product int PRIMARY KEY, quantity bigint NOT NULL);
CREATE TABLE dirty (product int NOT NULL);
"""
SET_UP = """
DELETE FROM line; DELETE FROM sold; DELETE FROM dirty;
INSERT INTO line VALUES (1, 1); INSERT INTO dirty VALUES (1)
"""

INSERT = text("INSERT INTO line VALUES (:product, :quantity)")
MARK = text("INSERT INTO dirty VALUES (:product)")
MARKED = text("SELECT DISTINCT product FROM dirty")
CLAIM = text("DELETE FROM dirty RETURNING product")
UNMARK = text("DELETE FROM dirty WHERE product = :product")
RECOMPUTE = text(
    """
    INSERT INTO sold SELECT product, sum(quantity) FROM line WHERE product = :product
    GROUP BY product ON CONFLICT (product) DO UPDATE SET quantity = excluded.quantity
    """
)


def sell(stage: Stage, product: int, quantity: int) -> None:
    with stage.engine.begin() as conn:
        conn.execute(INSERT, {"product": product, "quantity": quantity})
        conn.execute(MARK, {"product": product})


def refresh(stage: Stage, *, claims: bool) -> None:
    with stage.engine.begin() as conn:
        for product in set(conn.scalars(CLAIM if claims else MARKED)):
            conn.execute(RECOMPUTE, {"product": product})
            if not claims:  # markers that came after the recomputation go, too
                conn.execute(UNMARK, {"product": product})


def _meeting(*, claims: bool, refreshers: int = 1) -> Callable[[Stage], Tasks]:
    return lambda stage: {
        "seller": partial(sell, stage, 1, 10),
        **{f"refresh{n}": partial(refresh, stage, claims=claims) for n in range(refreshers)},
    }


def _equals_the_query(claims: bool) -> Callable[[Stage, Outcome], None]:  # noqa: FBT001 -- as in the table below
    def check(stage: Stage, _outcome: Outcome) -> None:
        refresh(stage, claims=claims)
        (kept,) = stage.one("SELECT quantity FROM sold")
        (queried,) = stage.one("SELECT sum(quantity) FROM line")
        assert kept == queried, f"kept is {kept}, the query says {queried}"

    return check


DESIGNS = [
    Design(
        "recompute, then delete the marker",
        "M1 M4 M5",
        SET_UP,
        _meeting(claims=False),
        _equals_the_query(False),
        wrong=True,
    ),
    Design(
        "claim the marker, then recompute",
        "M1 M4 M5",
        SET_UP,
        _meeting(claims=True),
        _equals_the_query(True),
    ),
    Design(
        "claim the marker, 2 refreshers",
        "M1 M4 M5",
        SET_UP,
        _meeting(claims=True, refreshers=2),
        _equals_the_query(True),
        everyday_preemptions=1,
    ),
]
