"""Numbers that two transactions change at once: no change is lost (E3)."""

from collections.abc import Callable
from functools import partial

from psycopg.errors import DeadlockDetected
from sqlalchemy import TextClause, text
from sqlalchemy.exc import OperationalError

from datapatterns.testing.interleaving import Outcome
from tests.interleavings.designs.design import Design, Stage, Tasks

TABLES = "CREATE TABLE account (key text PRIMARY KEY, cents int NOT NULL)"
SET_UP = "DELETE FROM account; INSERT INTO account VALUES ('x', 0), ('y', 0)"

READ = text("SELECT cents FROM account WHERE key = :key")
READ_FOR_UPDATE = text("SELECT cents FROM account WHERE key = :key FOR UPDATE")
WRITE = text("UPDATE account SET cents = :cents WHERE key = :key")
ADD = text("UPDATE account SET cents = cents + :cents WHERE key = :key")


def add(stage: Stage, read: TextClause, cents: int) -> None:
    with stage.engine.begin() as conn:
        found = conn.execute(read, {"key": "x"}).scalar_one()
        conn.execute(WRITE, {"key": "x", "cents": found + cents})


async def add_async(stage: Stage, read: TextClause, cents: int) -> None:
    async with stage.async_engine.begin() as conn:
        found = (await conn.execute(read, {"key": "x"})).scalar_one()
        await conn.execute(WRITE, {"key": "x", "cents": found + cents})


def transfer(stage: Stage, payer: str, payee: str) -> None:
    with stage.engine.begin() as conn:
        conn.execute(ADD, {"key": payer, "cents": -1})
        conn.execute(ADD, {"key": payee, "cents": 1})


def _adding(
    read: TextClause, how: Callable[[Stage, TextClause, int], object] = add
) -> Callable[[Stage], Tasks]:
    def tasks(stage: Stage) -> Tasks:
        if how is add_async:

            async def one() -> None:
                await add_async(stage, read, 1)

            async def two() -> None:
                await add_async(stage, read, 2)

            return {"one": one, "two": two}
        return {"one": partial(how, stage, read, 1), "two": partial(how, stage, read, 2)}

    return tasks


def _transferring(stage: Stage) -> Tasks:
    return {
        "there": partial(transfer, stage, "x", "y"),
        "back": partial(transfer, stage, "y", "x"),
    }


def _both_count(stage: Stage, _outcome: Outcome) -> None:
    (cents,) = stage.one("SELECT cents FROM account WHERE key = 'x'")
    assert cents == 3, f"1 and 2 were added, and the sum is {cents}"


def _money_stays(stage: Stage, outcome: Outcome) -> None:
    (total,) = stage.one("SELECT sum(cents) FROM account")
    assert total == 0, f"money came from nowhere: {total}"
    strange = [
        error
        for error in outcome.errors.values()
        if not isinstance(getattr(error, "orig", None), DeadlockDetected)
    ]
    assert not strange, strange


DESIGNS = [
    Design("SELECT, then UPDATE", "E3", SET_UP, _adding(READ), _both_count, wrong=True),
    Design(
        "SELECT, then UPDATE, async",
        "E3",
        SET_UP,
        _adding(READ, add_async),
        _both_count,
        wrong=True,
    ),
    Design("SELECT FOR UPDATE", "E3", SET_UP, _adding(READ_FOR_UPDATE), _both_count),
    Design(
        "SELECT FOR UPDATE, async",
        "E3",
        SET_UP,
        _adding(READ_FOR_UPDATE, add_async),
        _both_count,
    ),
    Design(
        "opposite transfers: the server breaks the deadlock",
        "",
        SET_UP,
        _transferring,
        _money_stays,
        allowed_errors=(OperationalError,),
    ),
]
