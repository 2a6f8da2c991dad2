"""Whatever happens in whatever order, the index that is behind is never wrong, and right at last.

Two writers have transactions open side by side and commit them late, chunks of the backfill come in
between, the consumer is removed, added again, and told to begin anew, logs are collected.
"""

from contextlib import suppress
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import IntegrityError

from datapatterns.change_log import ChangeLog
from datapatterns.index_table import IndexTable
from tests.fixtures.effort import THOROUGH
from tests.fixtures.index_tables import build, customer, tables

pytestmark = pytest.mark.postgres

KEYS = "abc"
LATER = IndexTable(
    "later",
    on=[customer.c.email],
    include=[customer.c.balance],
    where=customer.c.name.is_not(None),
    mode="async",
)
NOW = IndexTable("now", on=[customer.c.tenant_id, customer.c.email], unique=True)
CONSUMER = "index_table:later"

statements = st.sampled_from(
    [
        "INSERT INTO customer VALUES (:tenant, :id, :email, :name, :balance)",
        (
            "INSERT INTO customer SELECT :tenant, g, :email, :name, :balance"
            " FROM generate_series(:id, 40) g"
        ),
        (
            "INSERT INTO customer VALUES (:tenant, :id, :email, :name, :balance)"
            " ON CONFLICT (tenant_id, id) DO UPDATE SET email = excluded.email,"
            " name = excluded.name, balance = excluded.balance"
        ),
        "UPDATE customer SET email = :email WHERE tenant_id = :tenant AND id = :id",
        "UPDATE customer SET name = :name, balance = :balance WHERE tenant_id = :tenant",
        "UPDATE customer SET id = id + 100 WHERE tenant_id = :tenant AND id = :id",
        (
            "UPDATE customer a SET email = b.email FROM customer b WHERE a.tenant_id = :tenant"
            " AND b.tenant_id = a.tenant_id AND a.id = 3 - b.id AND a.id IN (1, 2)"
        ),
        "DELETE FROM customer WHERE tenant_id = :tenant AND id = :id",
        "DELETE FROM customer WHERE tenant_id = :tenant AND email = :email",
    ]
)
values = st.fixed_dictionaries(
    {
        "id": st.integers(0, 4),
        "email": st.one_of(st.none(), st.sampled_from(KEYS)),
        "name": st.sampled_from([None, "x", "x", "y"]),
        "balance": st.sampled_from([None, "1.0", "1.00", "NaN"]),
    }
)
writers = st.sampled_from([1, 2])


class Keeping(RuleBasedStateMachine):
    """Two writers, each of rows of its own tenant, beside all that keeps an index."""

    engine: ClassVar[Engine]

    def __init__(self) -> None:
        super().__init__()
        self.open: dict[int, Connection] = {}
        self.is_ready = False

    @initialize(before=st.lists(st.tuples(writers, statements, values), max_size=6))
    def begin(self, before: list[tuple[int, str, dict[str, Any]]]) -> None:
        with self.engine.begin() as conn:
            conn.execute(text("SET LOCAL lock_timeout = '5s'"))
            LATER.drop(conn)
            NOW.drop(conn)
            conn.execute(text("TRUNCATE customer"))
        # While it is empty, for two rows with one key end the building of it.
        build(self.engine, NOW)
        for tenant, statement, given in before:
            self.write(tenant, statement, given)
            self.commit(tenant)
        with self.engine.begin() as conn:
            LATER.create(conn)

    @rule(writer=writers, statement=statements, given=values)
    def write(self, writer: int, statement: str, given: dict[str, Any]) -> None:
        with suppress(IntegrityError), self._of_writer(writer).begin_nested():
            self.open[writer].execute(text(statement), {"tenant": writer, **given})

    @rule(writer=writers, statement=statements, given=values)
    def change_ones_mind(self, writer: int, statement: str, given: dict[str, Any]) -> None:
        with suppress(IntegrityError), self._of_writer(writer).begin_nested() as savepoint:
            self.open[writer].execute(text(statement), {"tenant": writer, **given})
            savepoint.rollback()

    @rule(writer=writers)
    def commit(self, writer: int) -> None:
        if (conn := self.open.pop(writer, None)) is not None:
            conn.commit()
            conn.close()

    @rule(writer=writers)
    def roll_back(self, writer: int) -> None:
        if (conn := self.open.pop(writer, None)) is not None:
            conn.rollback()
            conn.close()

    @precondition(lambda self: not self.open)
    @rule()
    def truncate(self) -> None:
        with self.engine.begin() as conn:
            conn.execute(text("TRUNCATE customer"))

    @precondition(lambda self: not self.is_ready)
    @rule()
    def index_a_chunk(self) -> None:
        with self.engine.begin() as conn:
            done = LATER.backfill(conn, limit=2).done
        if done:
            with self.engine.begin() as conn:
                assert LATER.activate(conn).clean
            self.is_ready = True

    @rule()
    def catch_up(self) -> None:
        with self.engine.begin() as conn:
            assert LATER.catch_up(conn) is not None
        if self.is_ready:
            self.is_right()

    @rule()
    def collect(self) -> None:
        with self.engine.begin() as conn:
            ChangeLog().collect_garbage(conn)

    @rule()
    def give_up_what_is_pending(self) -> None:
        with self.engine.begin() as conn:
            ChangeLog().restart_laggards(conn, pending_rows_max=3)

    @precondition(lambda self: not self.open)
    @rule(given=values)
    def remove_the_consumer_and_add_it_again(self, given: dict[str, Any]) -> None:
        log = ChangeLog()
        with self.engine.begin() as conn:
            log.forget_consumer(conn, CONSUMER)
        self.write(1, "UPDATE customer SET email = :email WHERE tenant_id = :tenant", given)
        self.write(1, "DELETE FROM customer WHERE tenant_id = :tenant AND id = :id", given)
        self.commit(1)
        with self.engine.begin() as conn:
            log.collect_garbage(conn)
            name = log.capture(conn, customer, [])
            log.register_consumer(conn, CONSUMER, "index_table", log_names=[name])

    @invariant()
    def nothing_wrong_is_found(self) -> None:
        if not self.is_ready:
            return
        with self._looking() as conn:
            rows = self._rows(conn)
            for key in KEYS:
                for row in LATER.lookup(conn, key):
                    assert (key, row.tenant_id, row.id, str(row.balance)) in rows
            assert {_of(entry) for entry in LATER.keys(conn)} <= set(rows)

    @invariant()
    def the_one_that_its_writers_keep_is_right(self) -> None:
        if not hasattr(self, "open"):
            return
        with self._looking() as conn:
            truth = conn.execute(
                text("SELECT tenant_id, email, id FROM customer WHERE email IS NOT NULL")
            ).all()
            found = [(*e.key, e.primary_key[1]) for e in NOW.keys(conn)]
        assert sorted(map(tuple, truth)) == sorted(found)

    def is_right(self) -> None:
        """Assert that all that is committed is found, and nothing else is in it."""
        with self._looking() as conn:
            rows = self._rows(conn)
            assert sorted(rows) == sorted(map(_of, LATER.covering(conn).entries))
            for key in KEYS:
                found = {(row.tenant_id, row.id) for row in LATER.lookup(conn, key)}
                assert found == {(row[1], row[2]) for row in rows if row[0] == key}

    def teardown(self) -> None:
        for writer in (1, 2):
            self.commit(writer)
        while not self.is_ready:
            self.index_a_chunk()
        self.catch_up()

    def _of_writer(self, writer: int) -> Connection:
        if writer not in self.open:
            self.open[writer] = self.engine.connect()
            # Nobody here waits for anybody; if somebody did, it would be for ever.
            self.open[writer].execute(text("SET lock_timeout = '5s'"))
        return self.open[writer]

    def _looking(self) -> Connection:
        return self.engine.connect().execution_options(isolation_level="REPEATABLE READ")

    def _rows(self, conn: Connection) -> list[tuple[Any, ...]]:
        found = conn.execute(
            text(
                "SELECT email, tenant_id, id, balance FROM customer"
                " WHERE email IS NOT NULL AND name IS NOT NULL"
            )
        )
        return [(*row[:3], str(row[3])) for row in found]


def _of(entry: Any) -> tuple[Any, ...]:  # noqa: ANN401 -- an index row
    return (*entry.key, *entry.primary_key, str(entry.included["balance"]))


@pytest.fixture(autouse=True)
def _stage(module_engine: Engine) -> None:
    tables.create_all(module_engine)
    Keeping.engine = module_engine


def effort(examples: int) -> settings:
    return settings(
        max_examples=examples * (20 if THOROUGH else 1), stateful_step_count=25, deadline=None
    )


def test_an_index_is_never_wrong_while_it_is_behind_and_right_when_it_is_not() -> None:
    run_state_machine_as_test(Keeping, settings=effort(12))
