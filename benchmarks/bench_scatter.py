"""Ask four shards at once, beside threads by hand and SQLAlchemy's own session over shards."""

import heapq
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from operator import itemgetter
from typing import Any, Literal, TypeAlias

import psycopg
from sqlalchemy import URL, BigInteger, Engine, Select, create_engine, func, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.interleaving import Claim, Contestant
from datapatterns import DataLayer
from datapatterns.migrations import Migrations
from datapatterns.sharding import EntityGroup, Hash, ShardCluster

Case: TypeAlias = Literal["first 100", "slow", "merge"]

CASES: tuple[Case, ...] = ("first 100", "slow", "merge")
ROWS = 400_000
ASKED = 20
SECONDS = 0.2
SHARDS = 4

READINGS = EntityGroup("reading", strategy=Hash(buckets=64))


class Base(DeclarativeBase):
    """The tables of this benchmark."""


class Reading(Base):
    """What is spread over the shards."""

    __tablename__ = "reading"
    __shard__ = READINGS.by("meter_id")

    meter_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    value: Mapped[int] = mapped_column(BigInteger, index=True)


FIRST = select(Reading.value, Reading.id).order_by(Reading.value, Reading.id).limit(100)
ALL = select(Reading.value, Reading.id).order_by(Reading.value)
FIRST_SQL = "SELECT value, id FROM reading ORDER BY value, id LIMIT 100"
ALL_SQL = "SELECT value, id FROM reading ORDER BY value"
# An operator of the benchmark that sleeps: a query that is slow without a processor of its own.
SLEEPS = (
    "CREATE FUNCTION sleeps(bigint, double precision) RETURNS bool LANGUAGE sql"
    " AS 'SELECT pg_sleep($2) IS NOT NULL'"
)
OPERATOR = "CREATE OPERATOR <~> (LEFTARG = bigint, RIGHTARG = double precision, FUNCTION = sleeps)"
SLOW = select(func.count()).where(Reading.meter_id.op("<~>")(SECONDS)).select_from(Reading)
SLOW_SQL = "SELECT count(*) FROM reading WHERE meter_id <~> %s"


@contextmanager
def claim(case: Case) -> Iterator[Claim]:
    """Four databases of one server with the same rows to everybody."""
    with DataLayer.embedded() as layer, ExitStack() as stack:
        cluster = stack.enter_context(_filled_cluster(layer.engine, slow=case == "slow"))
        urls = [engine.url for engine in cluster.engines.values()]
        raw = [stack.enter_context(_raw(url)) for url in urls]
        pool = stack.enter_context(ThreadPoolExecutor(SHARDS))
        sharded = _sharded_session(stack, urls)
        match case:
            case "first 100":
                yield Claim(
                    "the first 100 rows of 4 shards",
                    "statements",
                    [
                        Contestant("session over shards", "ours", _ours(cluster, FIRST)),
                        Contestant("threads, heapq.merge", "limit", _first_by_hand(raw, pool)),
                        Contestant("ShardedSession", "rival", _rival(sharded, FIRST)),
                    ],
                )
            case "slow":
                yield Claim(
                    f"a query that takes {SECONDS} s on each of 4 shards",
                    "statements",
                    [
                        Contestant("session over shards", "ours", _ours(cluster, SLOW, times=1)),
                        Contestant("one shard alone", "limit", _slow_by_hand(raw[0])),
                        Contestant("ShardedSession", "rival", _rival(sharded, SLOW, times=1)),
                    ],
                )
            case "merge":
                yield Claim(
                    f"{ROWS} ordered rows of 4 shards, streamed",
                    "rows",
                    [
                        Contestant("yield_per", "ours", _stream(cluster)),
                        Contestant("cursors, heapq.merge", "limit", _stream_by_hand(raw)),
                    ],
                )


@contextmanager
def _filled_cluster(engine: Engine, *, slow: bool) -> Iterator[ShardCluster]:
    urls = {}
    with engine.connect() as plain:
        conn = plain.execution_options(isolation_level="AUTOCOMMIT")
        for number in range(SHARDS):
            conn.execute(text(f"CREATE DATABASE bench_scatter_{number}"))
            urls[f"s{number}"] = make_url(engine.url).set(database=f"bench_scatter_{number}")
    for url in urls.values():
        Migrations({"main": url}).upgrade()
        of_shard = create_engine(url)
        Base.metadata.create_all(of_shard)
        of_shard.dispose()
    with ShardCluster(control=urls["s0"], shards=urls, groups=[READINGS]) as cluster:
        cluster.create_map()
        _fill(cluster, 1 if slow else ROWS // SHARDS)
        yield cluster


def _fill(cluster: ShardCluster, rows: int) -> None:
    shard_map = cluster.router.map_of(READINGS)
    for number, shard in enumerate(sorted(cluster.engines)):
        meter = next(key for key in range(10_000) if shard_map.shard_of(key) == shard)
        with cluster.begin_bulk(READINGS, shard) as conn:
            conn.execute(text(SLEEPS))
            conn.execute(text(OPERATOR))
            conn.execute(
                text(
                    "INSERT INTO reading SELECT :meter, g, (g * 7919 + :number) % 1000003"
                    " FROM generate_series(1, :rows) g"
                ),
                {"meter": meter, "number": number, "rows": rows},
            )
        with cluster.engines[shard].connect() as plain:
            plain.execution_options(isolation_level="AUTOCOMMIT").execute(text("VACUUM ANALYZE"))


def _raw(url: URL) -> psycopg.Connection[Any]:
    dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(dsn)


def _sharded_session(stack: ExitStack, urls: list[URL]) -> Callable[[], ShardedSession]:
    engines = {str(number): create_engine(url) for number, url in enumerate(urls)}
    for engine in engines.values():
        stack.callback(engine.dispose)

    def choose(*_args: Any, **_named: Any) -> list[str]:  # noqa: ANN401 -- as it is called
        return [*engines]

    return lambda: ShardedSession(
        shards=engines,
        shard_chooser=lambda *_args, **_named: "0",
        identity_chooser=choose,
        execute_chooser=choose,
    )


def _ours(
    cluster: ShardCluster, statement: Select[*tuple[Any, ...]], *, times: int | None = None
) -> Callable[[], int]:
    def run() -> int:
        for _ in range(times or ASKED):
            with cluster.session(scatter=True) as session:
                session.execute(statement).all()
        return times or ASKED

    return run


def _rival(
    sharded: Callable[[], ShardedSession],
    statement: Select[*tuple[Any, ...]],
    *,
    times: int | None = None,
) -> Callable[[], int]:
    """One shard after the other; 400 rows, in four orders, or four counts."""

    def run() -> int:
        for _ in range(times or ASKED):
            with sharded() as session:
                session.execute(statement).all()
        return times or ASKED

    return run


def _first_by_hand(
    connections: list[psycopg.Connection[Any]], pool: ThreadPoolExecutor
) -> Callable[[], int]:
    """Nobody tells whether the shards own what they answer."""

    def ask(conn: psycopg.Connection[Any]) -> list[tuple[Any, ...]]:
        with conn.transaction():
            return conn.execute(FIRST_SQL).fetchall()

    def run() -> int:
        for _ in range(ASKED):
            parts = list(pool.map(ask, connections))
            merged = heapq.merge(*parts)
            assert len([row for row, _ in zip(merged, range(100), strict=False)]) <= 100
        return ASKED

    return run


def _slow_by_hand(conn: psycopg.Connection[Any]) -> Callable[[], int]:
    def run() -> int:
        conn.execute(SLOW_SQL, [SECONDS]).fetchall()
        conn.rollback()
        return 1

    return run


def _stream(cluster: ShardCluster) -> Callable[[], int]:
    def run() -> int:
        with cluster.session(scatter=True) as session:
            result = session.execute(ALL, execution_options={"yield_per": 2_000})
            return _counted(result)

    return run


def _stream_by_hand(connections: list[psycopg.Connection[Any]]) -> Callable[[], int]:
    def run() -> int:
        with ExitStack() as stack:
            cursors = []
            for conn in connections:
                stack.enter_context(conn.transaction())
                cursor = stack.enter_context(conn.cursor("all_rows"))
                cursor.itersize = 2_000
                cursors.append(cursor.execute(ALL_SQL))
            return _counted(heapq.merge(*cursors, key=itemgetter(0)))

    return run


def _counted(rows: Iterable[Any]) -> int:
    count = sum(1 for _ in rows)
    assert count == ROWS
    return count
