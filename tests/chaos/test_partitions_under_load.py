"""Partitions come, are captured, and go, beside writers and refreshers: views stay exact."""

import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from psycopg.errors import (
    CheckViolation,
    DeadlockDetected,
    LockNotAvailable,
    SerializationFailure,
    UndefinedTable,
    UniqueViolation,
)
from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from datapatterns.change_log import ChangeLog
from datapatterns.materialized_view import MaterializedView
from tests.fixtures.view_tables import AnySelect, create, differences, refresh, run, verify

WRITERS, TRANSACTIONS = 3, 150
PACE_SECONDS = 0.05
LIFE_SECONDS = 0.4
"""Between two changes of partitions; each of them makes views be rebuilt, which mends anything."""
LOG = ChangeLog()
FATAL = (DeadlockDetected, SerializationFailure)  # a row was moved away under an UPDATE
EXPECTED = (CheckViolation, LockNotAvailable, UndefinedTable, UniqueViolation, *FATAL)


class Base(DeclarativeBase):
    pass


class Sale(Base):
    __tablename__ = "sale"
    __table_args__ = {"postgresql_partition_by": "RANGE (day)"}  # noqa: RUF012 -- as SQLAlchemy says

    id: Mapped[int] = mapped_column(primary_key=True)
    day: Mapped[int] = mapped_column(primary_key=True)
    region: Mapped[str]
    cents: Mapped[int]


class Region(Base):
    __tablename__ = "region"

    name: Mapped[str] = mapped_column(primary_key=True)
    manager: Mapped[str]


QUERY: AnySelect = (
    select(Region.manager, func.count().label("n"), func.sum(Sale.cents).label("cents"))
    .join(Region, Region.name == Sale.region)
    .group_by(Region.manager)
)
LARGEST: AnySelect = select(Sale.region, func.max(Sale.cents).label("cents")).group_by(Sale.region)
DAILY: AnySelect = (
    select(Sale.day, Region.manager, func.count().label("n"), func.sum(Sale.cents).label("cents"))
    .join(Region, Region.name == Sale.region)
    .group_by(Sale.day, Region.manager)
)
LARGEST_OF_DAY: AnySelect = (
    select(Sale.day, func.max(Sale.cents).label("cents"), func.max(Region.manager).label("last"))
    .join(Region, Region.name == Sale.region, isouter=True)
    .group_by(Sale.day)
)
DAY_BY_DAY = MaterializedView("daily", DAILY)
VIEWS = {
    MaterializedView("managed", QUERY): QUERY,
    MaterializedView("largest", LARGEST): LARGEST,
    DAY_BY_DAY: DAILY,  # of these two, partitions are computed anew
    MaterializedView("largest_of_day", LARGEST_OF_DAY): LARGEST_OF_DAY,
}
STATEMENTS = [
    (
        "INSERT INTO sale SELECT g, :day, :region, :n FROM generate_series(:id, :id + 2) g"
        " ON CONFLICT (id, day) DO UPDATE SET cents = excluded.cents"
    ),
    "UPDATE sale SET cents = cents + 1 WHERE id BETWEEN :id AND :id + 5",
    "DELETE FROM sale WHERE id BETWEEN :id AND :id + 2",
    "UPDATE sale_1 SET cents = cents + 1, region = :region WHERE id = :id",
    "UPDATE sale_2 SET cents = cents + 1 WHERE id < :id",  # it comes and goes
    "INSERT INTO sale_2 VALUES (:id, 15, :region, :n)",
    (
        "INSERT INTO region VALUES (:region, 'm' || :n % 3)"
        " ON CONFLICT (name) DO UPDATE SET manager = excluded.manager"
    ),
    "DELETE FROM region WHERE name = :region",
]
MOVES = ["UPDATE sale SET day = :day WHERE id = :id"]
MERGE = (
    "MERGE INTO sale s USING generate_series(:id, :id + 9) v (id) ON s.id = v.id"
    " WHEN MATCHED THEN UPDATE SET day = :day, cents = s.cents + 10"
)


def change(conn: Connection, chance: random.Random, *, moves: bool) -> None:
    values = {
        "id": chance.randint(1, 60),
        "n": chance.randint(1, 9),
        "day": chance.choice([1, 5, 12, 25]),
        "region": chance.choice("abcd"),
    }
    if chance.random() < 0.01:
        conn.execute(text("TRUNCATE sale_1"))
    try:
        with conn.begin_nested() as savepoint:
            version = conn.dialect.server_version_info or (0,)
            usable = [*STATEMENTS, *MOVES] if moves else STATEMENTS
            usable = [*usable, *[MERGE] * 3] if moves and version >= (15,) else usable
            conn.execute(text(chance.choice(usable)), values)
            if chance.random() < 0.15:
                savepoint.rollback()
    except DBAPIError as error:
        if not isinstance(error.orig, EXPECTED) or isinstance(error.orig, FATAL):
            raise


def write(engine: Engine, seed: int, *, moves: bool) -> int:
    """Run transactions that overlap those of others; return how many were committed."""
    chance, committed = random.Random(seed), 0  # noqa: S311 -- reproducible, not secret
    for _ in range(TRANSACTIONS):
        with engine.connect() as conn:
            try:
                for _ in range(chance.randint(1, 4)):
                    change(conn, chance, moves=moves)
                conn.commit()
                committed += 1
            except DBAPIError as error:
                if not isinstance(error.orig, EXPECTED):
                    raise
                conn.rollback()
    return committed


def come_and_go(engine: Engine) -> None:
    """Attach a partition that has rows, capture it or not, and detach it."""
    chance = random.Random()  # noqa: S311 -- not secret
    with engine.begin() as conn:
        conn.execute(text("SET LOCAL lock_timeout = '200ms'"))
        exists = conn.scalar(text("SELECT to_regclass('sale_2') IS NOT NULL"))
        attached = conn.scalar(
            text("SELECT count(*) FROM pg_inherits WHERE inhrelid = to_regclass('sale_2')")
        )
        if not exists:
            conn.execute(text("CREATE TABLE sale_2 (LIKE sale INCLUDING ALL)"))
            conn.execute(
                text("INSERT INTO sale_2 SELECT g, 15, 'a', g FROM generate_series(70, 75) g")
            )
        elif not attached:
            conn.execute(text("DELETE FROM sale WHERE day BETWEEN 10 AND 19"))
            conn.execute(text("ALTER TABLE sale DETACH PARTITION sale_rest"))
            conn.execute(
                text("ALTER TABLE sale ATTACH PARTITION sale_2 FOR VALUES FROM (10) TO (20)")
            )
            conn.execute(text("ALTER TABLE sale ATTACH PARTITION sale_rest DEFAULT"))
        elif chance.random() < 0.5:
            LOG.recapture(conn)
        else:
            conn.execute(text("ALTER TABLE sale DETACH PARTITION sale_2"))
            if chance.random() < 0.5:
                conn.execute(text("DROP TABLE sale_2"))


def take_in(engine: Engine, view: MaterializedView, partitions: Counter[str]) -> None:
    with engine.begin() as conn:
        report = view.refresh(conn)
    if report is not None and report.partitions:
        partitions[view.name] += 1


def mend(engine: Engine) -> None:
    """Compute a part of a view anew that is none of a single partition."""
    with engine.begin() as conn:
        DAY_BY_DAY.rebuild(conn, where=DAY_BY_DAY.c.day.between(5, 12))


def check(engine: Engine) -> None:
    for view in VIEWS:
        assert verify(engine, view) == []


def collect(engine: Engine) -> None:
    with engine.begin() as conn:
        LOG.collect_garbage(conn)


def repeat(
    engine: Engine, done: threading.Event, step: Callable[[Engine], None], pace: float
) -> int:
    """Take the step again and again; return how often it worked."""
    worked = 0
    while not done.is_set():
        try:
            step(engine)
            worked += 1
        except DBAPIError as error:
            if not isinstance(error.orig, EXPECTED):
                raise
        done.wait(pace)
    return worked


@pytest.mark.chaos
@pytest.mark.parametrize("moves", [True, False])
def test_views_of_a_partitioned_table_are_exact_under_load(engine: Engine, *, moves: bool) -> None:
    with engine.begin() as conn:
        Base.metadata.create_all(conn)
    run(
        engine,
        "CREATE TABLE sale_1 PARTITION OF sale FOR VALUES FROM (0) TO (10)",
        "CREATE TABLE sale_rest PARTITION OF sale DEFAULT",
        "INSERT INTO region VALUES ('a', 'm1'), ('b', 'm2')",
    )
    create(engine, *VIEWS)
    done = threading.Event()
    partitions: Counter[str] = Counter()
    steps: list[tuple[Callable[[Engine], None], float]] = [
        *((partial(take_in, view=v, partitions=partitions), PACE_SECONDS) for v in VIEWS),
        (come_and_go, LIFE_SECONDS),
        (mend, PACE_SECONDS),
        (check, 0),
        (collect, PACE_SECONDS),
    ]

    with ThreadPoolExecutor(max_workers=len(steps) + WRITERS) as pool:
        loops = [pool.submit(repeat, engine, done, *step) for step in steps]
        try:
            writers = [pool.submit(write, engine, seed, moves=moves) for seed in range(WRITERS)]
            committed = [writer.result() for writer in writers]
        finally:
            done.set()
        worked = [loop.result() for loop in loops]
    for view in VIEWS:
        refresh(engine, view)

    assert all(committed)
    assert all(worked)
    # Whoever finds that a row has moved computes all of it anew, whatever else is pending.
    assert moves or partitions.keys() == {"daily", "largest_of_day"}
    for view, query in VIEWS.items():
        assert differences(engine, view, query) == 0
