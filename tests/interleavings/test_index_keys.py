"""Two who want, give up or swap one unique key, in every order; and an index that is behind."""

from functools import partial

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from datapatterns.errors import IndexKeyTakenError
from datapatterns.index_table import IndexTable
from datapatterns.testing.interleaving import Explorer, InterleavingError, Outcome
from tests.fixtures.effort import THOROUGH, at_most
from tests.fixtures.index_tables import backfill, build, customer, order_line, tables
from tests.interleavings.designs.design import Tasks

pytestmark = pytest.mark.postgres

PREEMPTIONS = 2 if THOROUGH else 1
BY_EMAIL = IndexTable("customer_by_email", on=[customer.c.email], unique=True)
LATER = IndexTable(
    "line_by_product_later", on=[order_line.c.product_id], include=[order_line.c.note], mode="async"
)
CHANGES = {
    "inserts": ["INSERT INTO customer VALUES (1, 3, 'ann')"],
    "takes": ["UPDATE customer SET email = 'ann' WHERE id = 2"],
    "gives up": ["UPDATE customer SET email = NULL WHERE id = 1"],
    "deletes": ["DELETE FROM customer WHERE id = 1"],
    "swaps": [
        "UPDATE customer SET email = CASE id WHEN 1 THEN 'bob' ELSE 'ann' END WHERE id IN (1, 2)"
    ],
    "hands over": [
        "UPDATE customer SET email = NULL WHERE id = 1",
        (
            "INSERT INTO customer VALUES (1, 4, 'ann')"
            " ON CONFLICT (tenant_id, id) DO UPDATE SET email = excluded.email"
        ),
    ],
    "takes it for a moment": [
        "INSERT INTO customer VALUES (1, 5, 'cid')",
        "UPDATE customer SET email = 'dan' WHERE id = 5",
        "DELETE FROM customer WHERE id = 5",
    ],
}
PAIRS = [
    ("inserts", "inserts"),
    ("inserts", "deletes"),
    ("takes", "gives up"),
    ("swaps", "swaps"),
    ("swaps", "inserts"),
    ("swaps", "hands over"),
    ("hands over", "hands over"),
    ("deletes", "takes"),
    ("takes it for a moment", "takes it for a moment"),
]


@pytest.fixture(scope="module", autouse=True)
def _indexes(plain: Engine) -> None:
    tables.create_all(plain)
    build(plain, BY_EMAIL)
    build(plain, LATER)


def execute(engine: Engine, *statements: str) -> None:
    with engine.begin() as conn:
        for statement in statements:
            conn.execute(text(statement))


class Owning:
    """Two customers with an address each, and two who change that."""

    def __init__(self, gated: Engine, plain: Engine, one: str, other: str) -> None:
        self._gated, self._plain = gated, plain
        self._changes = {"one": CHANGES[one], "other": CHANGES[other]}

    def tasks(self) -> Tasks:
        execute(
            self._plain,
            "DELETE FROM customer",
            "INSERT INTO customer VALUES (1, 1, 'ann'), (1, 2, 'bob')",
        )
        return {name: partial(self._change, which) for name, which in self._changes.items()}

    def _change(self, statements: list[str]) -> None:
        with BY_EMAIL.key_conflicts():
            execute(self._gated, *statements)

    def each_key_has_one_owner_who_is_found(self, _outcome: Outcome) -> None:
        with self._plain.begin() as conn:
            rows = conn.execute(text("SELECT id, email FROM customer WHERE email IS NOT NULL"))
            owners = {email: number for number, email in rows}
            report = BY_EMAIL.verify(conn)
            assert report.clean, f"rows and index rows differ: {report}"
            assert report.rows == len(owners), "two rows have one key"
            for email, number in owners.items():
                assert [row.id for row in BY_EMAIL.lookup(conn, email)] == [number]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_a_key_that_two_change_has_one_owner_who_is_found(
    explorer: Explorer, gated: Engine, plain: Engine, one: str, other: str
) -> None:
    owning = Owning(gated, plain, one, other)

    explored = explorer.explore(
        owning.tasks,
        invariant=owning.each_key_has_one_owner_who_is_found,
        max_preemptions=PREEMPTIONS + 1,
        max_schedules=at_most(15),
        # PostgreSQL ends one of two that wait for each other.
        allowed_errors=(IndexKeyTakenError, OperationalError),
    )

    assert explored.schedules > 1


# -- an index that is behind -----------------------------------------------------------------------


class Following:
    """Lines that somebody changes while one worker, or two, or a builder, take changes in."""

    def __init__(self, gated: Engine, plain: Engine, *, is_built: bool) -> None:
        self._gated, self._plain, self._is_built = gated, plain, is_built

    def tasks(self) -> Tasks:
        with self._plain.begin() as conn:
            LATER.drop(conn)
        execute(
            self._plain,
            "DELETE FROM order_line",
            "INSERT INTO order_line SELECT g, g, 'n' FROM generate_series(1, 3) AS g",
        )
        if self._is_built:
            build(self._plain, LATER)
        else:
            with self._plain.begin() as conn:
                LATER.create(conn)
        further = self._catch_up if self._is_built else self._fill
        return {
            "writer": partial(
                execute,
                self._gated,
                "UPDATE order_line SET product_id = 9 WHERE id = 3",
                "DELETE FROM order_line WHERE id = 2",
            ),
            "worker": self._catch_up,
            "further": further,
        }

    def _catch_up(self) -> None:
        with self._gated.begin() as conn:
            LATER.catch_up(conn, skip_locked=True)

    def _fill(self) -> None:
        for _ in range(2):
            with self._gated.begin() as conn:
                LATER.backfill(conn, limit=2)

    def is_whole(self, _outcome: Outcome) -> None:
        backfill(self._plain, LATER)
        with self._plain.begin() as conn:
            LATER.catch_up(conn)
        with self._plain.begin() as conn:
            report = LATER.verify(conn)
            entries = conn.scalar(text("SELECT count(*) FROM datapatterns.line_by_product_later"))
        assert report.clean, f"rows and index rows differ: {report}"
        assert entries == report.rows == 2


@pytest.mark.parametrize("is_built", [True, False], ids=["two workers", "worker and builder"])
def test_an_index_that_is_behind_is_right_in_the_end(
    explorer: Explorer, gated: Engine, plain: Engine, *, is_built: bool
) -> None:
    kept = Following(gated, plain, is_built=is_built)

    explored = explorer.explore(
        kept.tasks,
        invariant=kept.is_whole,
        max_preemptions=PREEMPTIONS,
        max_schedules=at_most(20),
    )

    assert explored.schedules > 5


def test_a_builder_beside_a_worker_that_does_not_keep_it_out_leaves_wrong_index_rows(
    explorer: Explorer, gated: Engine, plain: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Following(gated, plain, is_built=False)
    monkeypatch.setattr("datapatterns.index_table.backfilling.hold", lambda *_: None)

    with pytest.raises(InterleavingError, match="rows and index rows differ"):
        explorer.explore(kept.tasks, invariant=kept.is_whole, max_preemptions=2)
