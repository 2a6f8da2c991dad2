"""Index rows beside rows that several write, claim, backfill and verify."""

from collections.abc import Callable
from functools import partial

import pytest
from sqlalchemy import Engine, text

from datapatterns.errors import IndexKeyTakenError
from datapatterns.index_table import IndexTable, VerifyReport
from datapatterns.testing.interleaving import Explorer, InterleavingError, Outcome
from tests.fixtures.effort import THOROUGH, at_most
from tests.fixtures.index_tables import backfill, build, customer, order_line, tables
from tests.interleavings.designs.design import Tasks
from tests.interleavings.guards import statements_without, table_without

pytestmark = pytest.mark.postgres

PREEMPTIONS = 2 if THOROUGH else 1
BY_PRODUCT = IndexTable(
    "line_by_product", on=[order_line.c.product_id], include=[order_line.c.note]
)
BY_EMAIL = IndexTable("customer_by_email", on=[customer.c.email], unique=True)


@pytest.fixture(scope="module", autouse=True)
def _indexes(plain: Engine) -> None:
    tables.create_all(plain)
    build(plain, BY_PRODUCT)
    build(plain, BY_EMAIL)


def execute(engine: Engine, *statements: str) -> None:
    with engine.begin() as conn:
        for statement in statements:
            conn.execute(text(statement))


def begin(plain: Engine) -> None:
    """Begin a schedule with three lines of three products, and no customers."""
    execute(
        plain,
        "DELETE FROM order_line",
        "INSERT INTO order_line SELECT g, g, 'n' FROM generate_series(1, 3) AS g",
        "DELETE FROM customer",
    )


def is_clean(plain: Engine, index: IndexTable) -> Callable[[Outcome], None]:
    def check(_outcome: Outcome) -> None:
        with plain.begin() as conn:
            report = index.verify(conn)
        assert report.clean, f"rows and index rows differ: {report}"

    return check


# -- I1: rows that several change ------------------------------------------------------------------


def writing(gated: Engine, plain: Engine) -> Tasks:
    begin(plain)
    return {
        "one": partial(
            execute,
            gated,
            "UPDATE order_line SET product_id = 7, note = 'one' WHERE id = 1",
            "UPDATE order_line SET product_id = product_id + 10 WHERE id IN (2, 3)",
        ),
        "two": partial(
            execute,
            gated,
            "UPDATE order_line SET product_id = product_id + 100 WHERE id = 1",
            "DELETE FROM order_line WHERE id = 2",
            "INSERT INTO order_line VALUES (4, 7, 'two')",
        ),
    }


def test_index_rows_follow_rows_that_two_transactions_change(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    explored = explorer.explore(
        partial(writing, gated, plain),
        invariant=is_clean(plain, BY_PRODUCT),
        max_preemptions=PREEMPTIONS + 1,
    )

    assert explored.exhausted
    assert explored.blocked_steps


def test_every_look_of_a_verifier_beside_writers_is_clean(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    def verify() -> list[VerifyReport]:
        reports = []
        for _ in range(2):
            with gated.begin() as conn:
                reports.append(BY_PRODUCT.verify(conn))
        return reports

    def looks_are_clean(outcome: Outcome) -> None:
        assert all(report.clean for report in outcome.results["verifier"])

    explored = explorer.explore(
        lambda: {**writing(gated, plain), "verifier": verify},
        invariant=looks_are_clean,
        max_preemptions=PREEMPTIONS,
        max_schedules=at_most(20),
    )

    assert explored.schedules > 10


# -- I3: one owner of a unique value ---------------------------------------------------------------


class Claiming:
    """Three who want one address."""

    def __init__(self, gated: Engine, plain: Engine) -> None:
        self._gated, self._plain = gated, plain

    def tasks(self) -> Tasks:
        begin(self._plain)
        return {f"claimant{n}": partial(self._claim, n) for n in range(3)}

    def _claim(self, number: int) -> None:
        with BY_EMAIL.key_conflicts(), self._gated.begin() as conn:
            conn.execute(
                text("INSERT INTO customer VALUES (1, :id, 'ann@example.org', 'Ann', 0)"),
                {"id": number},
            )

    def one_has_it(self, outcome: Outcome) -> None:
        with self._plain.begin() as conn:
            owners = len(BY_EMAIL.lookup(conn, "ann@example.org"))
        assert owners == len(outcome.results) == 1, f"{owners} have the address"


def test_of_three_claims_of_one_value_one_wins(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    claiming = Claiming(gated, plain)

    explored = explorer.explore(
        claiming.tasks,
        invariant=claiming.one_has_it,
        max_preemptions=PREEMPTIONS + 1,
        allowed_errors=(IndexKeyTakenError,),
    )

    assert explored.exhausted
    assert explored.blocked_steps


def test_without_the_constraint_several_win(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    claiming = Claiming(gated, plain)

    with table_without(plain, "datapatterns.customer_by_email", "pk_customer_by_email"):
        with pytest.raises(InterleavingError, match="have the address"):
            explorer.explore(
                claiming.tasks, invariant=claiming.one_has_it, allowed_errors=(IndexKeyTakenError,)
            )
        execute(plain, "DELETE FROM customer")


# -- I6: a backfill beside writers -----------------------------------------------------------------


class Building:
    """An index of rows that were there before it, and somebody who changes them."""

    def __init__(self, gated: Engine, plain: Engine) -> None:
        self._gated, self._plain = gated, plain

    def tasks(self) -> Tasks:
        with self._plain.begin() as conn:
            BY_PRODUCT.drop(conn)
        begin(self._plain)
        with self._plain.begin() as conn:
            BY_PRODUCT.create(conn)
        return {
            "writer": partial(
                execute,
                self._gated,
                "DELETE FROM order_line WHERE id = 2",
                "UPDATE order_line SET product_id = 9 WHERE id = 3",
            ),
            "backfill": self._fill,
        }

    def _fill(self) -> None:
        for _ in range(2):
            with self._gated.begin() as conn:
                BY_PRODUCT.backfill(conn, limit=2)

    def is_whole(self, _outcome: Outcome) -> None:
        backfill(self._plain, BY_PRODUCT)
        is_clean(self._plain, BY_PRODUCT)(_outcome)


@pytest.fixture
def building(gated: Engine, plain: Engine) -> Building:
    return Building(gated, plain)


def test_a_backfill_beside_a_writer_indexes_what_is_there_in_the_end(
    explorer: Explorer, building: Building
) -> None:
    explored = explorer.explore(
        building.tasks,
        invariant=building.is_whole,
        max_preemptions=PREEMPTIONS,
        max_schedules=at_most(20),
    )

    assert explored.blocked_steps


def test_a_backfill_that_locks_no_rows_leaves_index_rows_without_rows(
    explorer: Explorer, building: Building, gated: Engine
) -> None:
    with (
        statements_without(gated, " FOR SHARE SKIP LOCKED"),
        pytest.raises(InterleavingError, match="rows and index rows differ"),
    ):
        explorer.explore(building.tasks, invariant=building.is_whole, max_preemptions=2)
