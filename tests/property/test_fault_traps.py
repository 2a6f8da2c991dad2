"""Whatever a client sends in whatever way, a trap at the n-th COMMIT tells the truth about it.

The model is a list of what must be there: all that was committed before the trap, and the struck
transaction if only its answer was lost.
"""

from collections.abc import Callable
from dataclasses import dataclass

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import URL, Engine, text

from datapatterns.testing import FaultProxy

pytestmark = pytest.mark.postgres

Connection = psycopg.Connection[tuple[int, ...]]
INSERT = "INSERT INTO note VALUES (%s)"


def simple(conn: Connection, number: int, end: str) -> None:
    conn.execute("BEGIN")
    conn.execute(f"INSERT INTO note VALUES ({number})")  # noqa: S608 -- a number
    conn.execute(end)


def prepared(conn: Connection, number: int, end: str) -> None:
    conn.execute("BEGIN", prepare=True)
    conn.execute(INSERT, (number,), prepare=True)
    conn.execute(end, prepare=True)


def piped(conn: Connection, number: int, end: str) -> None:
    with conn.pipeline():
        conn.execute("BEGIN")
        conn.execute(INSERT, (number,))
        conn.execute(end)


def in_one_string(conn: Connection, number: int, end: str) -> None:
    insert = f"INSERT INTO note VALUES ({number})"  # noqa: S608 -- a number
    conn.execute(f"BEGIN; {insert}; /* ; */ {end}; SELECT 'COMMIT'")


def copied(conn: Connection, number: int, end: str) -> None:
    conn.execute("BEGIN")
    with conn.cursor().copy("COPY note FROM STDIN") as copy:
        copy.write_row((number,))
    conn.execute(end)


def fail(conn: Connection) -> None:
    with conn.pipeline():
        conn.execute("SELECT 1 / 0")
        conn.execute("COMMIT")  # sent, and skipped by the server


def after_a_failure(conn: Connection, number: int, end: str) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        fail(conn)
    prepared(conn, number, end)


def through_a_cursor(conn: Connection, number: int, end: str) -> None:
    conn.execute("BEGIN")
    with conn.cursor("numbers") as cursor:
        cursor.execute("SELECT generate_series(1, 7)")
        cursor.fetchmany(2)
    conn.execute(INSERT, (number,))
    conn.execute(end)


Way = Callable[[Connection, int, str], None]
WAYS: list[Way] = [
    simple,
    prepared,
    piped,
    in_one_string,
    copied,
    after_a_failure,
    through_a_cursor,
]


@dataclass(frozen=True)
class Transaction:
    way: Way
    end: str

    @property
    def commits(self) -> bool:
        return self.end.upper() == "COMMIT"

    def springs(self, *, reply_is_lost: bool) -> bool:
        """Whether it sends a COMMIT, or one that is answered."""
        return self.commits or (self.way is after_a_failure and not reply_is_lost)


programs = st.lists(
    st.builds(
        Transaction, st.sampled_from(WAYS), st.sampled_from(["COMMIT", "commit", "ROLLBACK"])
    ),
    min_size=1,
    max_size=5,
)


@pytest.fixture(scope="module")
def notes(module_engine: Engine) -> Engine:
    with module_engine.begin() as conn:
        conn.execute(text("CREATE TABLE note (number int)"))
    return module_engine


@given(program=programs, reply_is_lost=st.booleans(), data=st.data())
def test_a_trap_at_any_commit_tells_what_is_there(
    notes: Engine, program: list[Transaction], *, reply_is_lost: bool, data: st.DataObject
) -> None:
    struck = data.draw(st.integers(0, len(program) - 1), label="struck")
    before, after = program[:struck], program[struck:]
    breaking = next((t for t in after if t.springs(reply_is_lost=reply_is_lost)), None)
    with notes.begin() as conn:
        conn.execute(text("TRUNCATE note"))

    with FaultProxy(notes.url) as proxy, psycopg.connect(dsn(proxy), autocommit=True) as client:
        for number, transaction in enumerate(before):
            transaction.way(client, number, transaction.end)
        cut = proxy.cut_next_reply_to if reply_is_lost else proxy.cut_before_request
        trap = cut("COMMIT")
        has_broken = False
        for number, transaction in enumerate(after, struck):
            has_broken = breaks(client, transaction, number)
            if has_broken:
                break

    expected = [number for number, t in enumerate(before) if t.commits]
    if breaking is not None and breaking.commits and reply_is_lost:
        expected.append(program.index(breaking, struck))
    assert has_broken == trap.has_fired == (breaking is not None)
    with notes.connect() as conn:
        assert conn.scalars(text("SELECT number FROM note ORDER BY 1")).all() == expected


def dsn(proxy: FaultProxy[URL]) -> str:
    return proxy.url.set(drivername="postgresql").render_as_string(hide_password=False)


def breaks(conn: Connection, transaction: Transaction, number: int) -> bool:
    try:
        transaction.way(conn, number, transaction.end)
    except psycopg.OperationalError:
        return True
    return False
