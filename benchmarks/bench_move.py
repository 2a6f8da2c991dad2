"""Move a bucket beside a raw COPY of its rows, and what its writers notice of the cut."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import psycopg
from sqlalchemy import URL, BigInteger, create_engine, insert, text, update
from sqlalchemy.engine import make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.delays import DelayClaim, Traveller
from benchmarks.interleaving import Claim, Contestant
from datapatterns import DataLayer
from datapatterns.errors import StaleShardMapError
from datapatterns.migrations import Migrations
from datapatterns.sharding import EntityGroup, Hash, ShardCluster
from datapatterns.sharding.moving.mover import Mover
from datapatterns.sharding.moving.settings import MoveSettings

Case: TypeAlias = Literal["move", "pause"]

CASES: tuple[Case, ...] = ("move", "pause")
ROWS = 100_000
PAUSED_ROWS = 20_000
MOVES = 8
WRITERS = 3

COPY_OUT = (
    "COPY (SELECT * FROM reading WHERE datapatterns.hash_bucket(meter_id, 16) = 0)"
    " TO STDOUT (FORMAT binary)"
)
METERS = EntityGroup("meter", strategy=Hash(buckets=16))
KEY = next(key for key in range(1_000) if METERS.strategy.bucket(key) == 0)


class Base(DeclarativeBase):
    """The tables of this benchmark."""


class Reading(Base):
    """What is moved."""

    __tablename__ = "reading"
    __shard__ = METERS.by("meter_id")

    meter_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    value: Mapped[int] = mapped_column(BigInteger)
    note: Mapped[str]


@contextmanager
def claim(case: Case) -> Iterator[Claim | DelayClaim]:
    """Two databases of one server, and one bucket full of rows."""
    with (
        DataLayer.embedded() as layer,
        _cluster(layer.engine.url) as cluster,
        _raw(cluster, "s0") as first,
        _raw(cluster, "s1") as second,
    ):
        if case == "move":
            _fill(cluster, ROWS)
            yield Claim(
                f"{ROWS} rows of a bucket, on another shard",
                "rows",
                [
                    Contestant("a move", "ours", *_moving(cluster)),
                    Contestant(
                        "COPY to COPY", "limit", *_copying(cluster, {"s0": first, "s1": second})
                    ),
                ],
            )
        else:
            _fill(cluster, PAUSED_ROWS)
            yield DelayClaim(
                f"the longest write of {WRITERS} writers to a bucket of {PAUSED_ROWS} rows",
                [
                    Traveller("while it moves", "ours", lambda: _longest(cluster, moving=True)),
                    Traveller("while it stays", "limit", lambda: _longest(cluster, moving=False)),
                ],
            )


@contextmanager
def _cluster(control: URL) -> Iterator[ShardCluster]:
    urls = {}
    engine = create_engine(control, isolation_level="AUTOCOMMIT")
    with engine.connect() as conn:
        for number in range(2):
            conn.execute(text(f"CREATE DATABASE bench_move_{number}"))
            urls[f"s{number}"] = make_url(control).set(database=f"bench_move_{number}")
    engine.dispose()
    for url in urls.values():
        Migrations({"main": url}).upgrade()
        of_shard = create_engine(url)
        Base.metadata.create_all(of_shard)
        with of_shard.begin() as conn:
            conn.execute(text("CREATE INDEX ON reading (datapatterns.hash_bucket(meter_id, 16))"))
            conn.execute(text("CREATE TABLE copied (LIKE reading INCLUDING ALL)"))
        of_shard.dispose()
    with ShardCluster(control=urls["s0"], shards=urls, groups=[METERS]) as cluster:
        cluster.create_map()
        yield cluster


def _fill(cluster: ShardCluster, rows: int) -> None:
    with cluster.begin_bulk(METERS, "s0") as conn:
        for start in range(0, rows, 10_000):
            conn.execute(
                insert(Reading),
                [
                    {"meter_id": KEY, "id": number, "value": number, "note": f"note {number}"}
                    for number in range(start, min(rows, start + 10_000))
                ],
            )


def _owner(cluster: ShardCluster) -> str:
    return cluster.router.map_of(METERS).owners[0]


def _other(shard: str) -> str:
    return "s1" if shard == "s0" else "s0"


def _moving(cluster: ShardCluster) -> tuple[Callable[[], int], Callable[[], None]]:
    """Time until the target is the owner; the source is cleaned before the next round.

    To and fro: to bring it back every time would take longer than all that is measured.
    """
    mover = Mover(cluster._moving, MoveSettings(0))  # noqa: SLF001 -- to leave out the cleaning

    def move() -> int:
        source = _owner(cluster)
        move_id = mover.plan(METERS, 0, source=source, target=_other(source))
        return mover.run(move_id, clean_up=False).copied_rows or 0

    def prepare() -> None:
        _clean(cluster)

    return move, prepare


def _clean(cluster: ShardCluster) -> None:
    """Let neither shard be full of rows that have left it."""
    cluster.resume_moves(clean_after_seconds=0)
    for engine in cluster.engines.values():
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            conn.execute(text("VACUUM reading"))


def _raw(cluster: ShardCluster, shard: str) -> psycopg.Connection:
    url = cluster.engines[shard].url.set(drivername="postgresql")
    return psycopg.connect(url.render_as_string(hide_password=False))


def _copying(
    cluster: ShardCluster, shards: Mapping[str, psycopg.Connection]
) -> tuple[Callable[[], int], Callable[[], None]]:
    """Time as long as the same rows take, the same way, by hand."""

    def copy() -> int:
        source = _owner(cluster)
        out, into = shards[source], shards[_other(source)]
        with (
            out.cursor().copy(COPY_OUT) as blocks,
            into.cursor() as cursor,
        ):
            with cursor.copy("COPY copied FROM STDIN (FORMAT binary)") as copy:
                for block in blocks:
                    copy.write(block)
            copied = cursor.rowcount
        into.commit()
        out.commit()
        return copied

    def prepare() -> None:
        _clean(cluster)
        for shard in shards.values():
            shard.execute("TRUNCATE copied")
            shard.commit()

    return copy, prepare


def _longest(cluster: ShardCluster, *, moving: bool) -> list[float]:
    """Return the longest write of each of many spans, with a move in it or not."""
    writes: list[tuple[float, float]] = []
    stop = threading.Event()
    threads = [
        threading.Thread(target=_write, args=(cluster, number, writes, stop))
        for number in range(WRITERS)
    ]
    for thread in threads:
        thread.start()
    spans = []
    try:
        for _ in range(MOVES):
            began = time.monotonic()
            if moving:
                cluster.move(METERS, 0, to=_other(_owner(cluster)), clean_after_seconds=0)
            else:
                time.sleep(0.3)
            spans.append((began, time.monotonic()))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    return [
        max((took for at, took in writes if began <= at <= ended), default=0.0001)
        for began, ended in spans
    ]


def _write(
    cluster: ShardCluster, number: int, writes: list[tuple[float, float]], stop: threading.Event
) -> None:
    changed: Any = (
        update(Reading)
        .where(Reading.meter_id == KEY, Reading.id == number)
        .values(value=Reading.value + 1)
    )
    while not stop.is_set():
        began = time.monotonic()
        while True:
            try:
                with cluster.connect(METERS, meter_id=KEY) as conn, conn.begin():
                    conn.execute(changed)
                break
            except StaleShardMapError:
                time.sleep(0.001)
        writes.append((began, time.monotonic() - began))
        time.sleep(0.002)
