"""What a design is: tasks that meet, what must hold afterwards, and whether it does."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from redis import Redis
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from datapatterns.testing.interleaving import Fault, Gate, Outcome

Tasks = Mapping[str, Callable[[], Any]]


@dataclass(frozen=True)
class Stage:
    """Servers for one design after the other.

    Attributes:
        engine: For tasks; its connections are gated.
        async_engine: The same.
        redis: The same.
        plain: For set-up and checks; in autocommit mode.
    """

    engine: Engine
    async_engine: AsyncEngine
    redis: Redis
    plain: psycopg.Connection[Any]

    def one(self, query: str) -> tuple[Any, ...]:
        """Return the one row of a query."""
        found: tuple[Any, ...] | None = self.plain.execute(query.encode()).fetchone()
        assert found is not None
        return found

    def column(self, query: str) -> list[Any]:
        """Return the only column of a query, sorted."""
        return sorted(value for (value,) in self.plain.execute(query.encode()))


@dataclass(frozen=True)
class Search:
    """How far a design is explored.

    Attributes:
        preemptions: At most so many in one schedule.
        faults: What may befall a task, once in a schedule.
        fault_at: At which gates.
    """

    preemptions: int = 3
    faults: tuple[Fault, ...] = ()
    fault_at: Callable[[Gate], bool] = lambda _: True


def is_commit(gate: Gate) -> bool:
    return gate.label == "COMMIT"


DEFAULT_SEARCH = Search()
CRASHES = Search(faults=(Fault.CRASH,))
CRASHES_NARROWLY = Search(preemptions=1, faults=(Fault.CRASH,))
LOST_COMMITS = Search(faults=(Fault.REQUEST_LOST, Fault.REPLY_LOST), fault_at=is_commit)


@dataclass(frozen=True)
class Design:
    """A way to do it.

    Attributes:
        name: What it does, in a few words.
        promise: Which invariants it is to keep.
        set_up: SQL that puts the tables into their first state.
        tasks: Who meets.
        check: Asserts, when all have ended, that the promise was kept.
        wrong: The promise is broken after some schedules within the bounds of ``search``.
        search: How far it is explored by ``make torture``.
        everyday_preemptions: The bound of ``make test``.
        allowed_errors: What a task may fail with.
        examples: How many schedules a random search may draw until it has found what is wrong.
        eludes_chance: It misses it for all that.
    """

    name: str
    promise: str
    set_up: str
    tasks: Callable[[Stage], Tasks]
    check: Callable[[Stage, Outcome], None]
    wrong: bool = False
    search: Search = DEFAULT_SEARCH
    everyday_preemptions: int = 2
    allowed_errors: tuple[type[BaseException], ...] = ()
    examples: int = 150
    eludes_chance: bool = False
