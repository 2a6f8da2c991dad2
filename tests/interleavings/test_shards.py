"""Writers and readers with an old map, while a bucket moves from one shard to another."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from sqlalchemy import URL, Connection, Engine, create_engine, event, select, text
from sqlalchemy.exc import DisconnectionError

from datapatterns.errors import StaleShardMapError
from datapatterns.sharding import ShardCluster
from datapatterns.testing import Databases, ManualClock
from datapatterns.testing.interleaving import Explorer, Fault, InterleavingError, Outcome
from tests.fixtures.effort import THOROUGH, at_most
from tests.fixtures.shard_model import Basket, create_tables, households, named
from tests.interleavings.designs.design import Tasks, is_commit
from tests.interleavings.guards import function_without

pytestmark = pytest.mark.postgres

PREEMPTIONS = 2 if THOROUGH else 1
KEY = 7
SESSIONS = 3


@dataclass
class Move:
    """Two shards, and the bucket of household 7 that moves from one to the other.

    Nothing of ours moves buckets yet: the mover is what the fences are made for.

    Attributes:
        plain: Engines for set-up and checks, by shard.
    """

    explorer: Explorer
    cluster: ShardCluster
    urls: Mapping[str, URL]
    plain: Mapping[str, Engine]

    def __post_init__(self) -> None:
        shard_map = self.cluster.router.map_of(households)
        self._group = shard_map.group_id
        self._bucket = shard_map.strategy.bucket(KEY)
        self.source = shard_map.shard_of(KEY)
        self.target = next(shard for shard in self.urls if shard != self.source)
        self._source, self._target = (
            self.explorer.engine(self.urls[shard]) for shard in (self.source, self.target)
        )

    def begin(self) -> None:
        """Begin a schedule: the source owns the bucket and one basket in it; routers know."""
        values = {"bucket": self._bucket, "group": self._group}
        for shard, engine in self.plain.items():
            with engine.begin() as conn:
                conn.execute(text("DELETE FROM basket"))
                conn.execute(text("DELETE FROM datapatterns.bucket WHERE bucket = :bucket"), values)
                if shard == self.source:
                    self._own(conn)
                    conn.execute(text("INSERT INTO basket (household_id, id) VALUES (7, 1)"))
        with self.plain["s0"].begin() as conn:
            self._point_to(conn, self.source)
        self.cluster.router.refresh()
        for engine in self.cluster.engines.values():  # no connection is opened in a schedule
            with ExitStack() as stack:
                for _ in range(SESSIONS):
                    stack.enter_context(engine.connect())

    def move(self) -> None:
        """Copy the rows while nobody can write them, and hand the bucket over."""
        with self._source.begin() as source:
            source.execute(
                text("SELECT pg_advisory_xact_lock(datapatterns.fence_class(:group), :bucket)"),
                {"group": self._group, "bucket": self._bucket},
            )
            ids = source.scalars(text("SELECT id FROM basket WHERE household_id = 7")).all()
            with self._target.begin() as target:
                for basket in ids:
                    target.execute(
                        text("INSERT INTO basket (household_id, id) VALUES (7, :id)"),
                        {"id": basket},
                    )
                self._own(target)
            source.execute(
                text("UPDATE datapatterns.bucket SET state = 'moved' WHERE bucket = :bucket"),
                {"bucket": self._bucket},
            )
        with self.plain["s0"].begin() as control:
            self._point_to(control, self.target)

    def write(self, basket: int) -> None:
        """Write as an application does: once more, if the map was old."""
        try:
            self._write(basket)
        except StaleShardMapError:
            self.cluster.router.refresh()
            self._write(basket)

    def _write(self, basket: int) -> None:
        with self.cluster.session() as session:
            session.add(Basket(household_id=KEY, id=basket))
            session.commit()

    def write_by_core(self, basket: int) -> None:
        with self.cluster.connect(households, household_id=KEY) as conn, conn.begin():
            conn.execute(
                text("INSERT INTO basket (household_id, id) VALUES (7, :id)"), {"id": basket}
            )

    def read(self) -> list[int]:
        query = select(Basket.id).where(Basket.household_id == KEY)
        with self.cluster.session() as session:
            return sorted(session.scalars(query))

    def nothing_is_lost(self, outcome: Outcome) -> None:
        """Ask by the new map for what was acknowledged."""
        self.cluster.router.refresh()
        written = {1} | {int(name[-1]) for name in outcome.results if name.startswith("writer")}
        found = self.read()
        assert written <= set(found), f"written were {sorted(written)}, found are {found}"

    def _own(self, conn: Connection) -> None:
        conn.execute(
            text("INSERT INTO datapatterns.bucket VALUES (:group, :bucket, 'owned', 1)"),
            {"group": self._group, "bucket": self._bucket},
        )

    def _point_to(self, conn: Connection, shard: str) -> None:
        values = {"shard": shard, "bucket": self._bucket}
        conn.execute(
            text(
                "UPDATE datapatterns.bucket_map SET shard_id = :shard, epoch = epoch + 1"
                " WHERE bucket = :bucket"
            ),
            values,
        )
        conn.execute(text("UPDATE datapatterns.shard_group SET epoch = epoch + 1"))


@pytest.fixture(scope="module")
def move(databases: Databases, redis_url: str) -> Iterator[Move]:
    urls = named([databases.new(), databases.new()])
    with ExitStack() as stack:
        for url in urls.values():
            create_tables(url)
        explorer = stack.enter_context(Explorer(urls["s0"], redis_url))
        plain = {shard: create_engine(url) for shard, url in urls.items()}
        cluster = stack.enter_context(
            ShardCluster(
                control=urls["s0"],
                shards=urls,
                groups=[households],
                clock=ManualClock(),
                engine_options={"pool_size": SESSIONS},
            )
        )
        for shard, engine in cluster.engines.items():
            gate(engine, explorer, urls[shard])
        cluster.create_map()
        yield Move(explorer, cluster, urls, plain)
        for engine in plain.values():
            engine.dispose()
    for url in urls.values():
        databases.drop(url)


def gate(engine: Engine, explorer: Explorer, url: URL) -> None:
    """Let an engine that a cluster has made open connections that are gated."""

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: object, _record: object, _args: object, kwargs: dict[str, Any]) -> Any:  # noqa: ANN401 -- the driver's
        return explorer.connect(url, context=kwargs.get("context"))

    @event.listens_for(engine, "checkout")
    def look(connection: Any, _record: object, _proxy: object) -> None:  # noqa: ANN401 -- psycopg's
        if connection.closed:  # its task has died, and nobody inherits from it
            raise DisconnectionError


def moving(move: Move) -> Tasks:
    move.begin()
    return {
        "writer2": partial(move.write, 2),
        "mover": move.move,
        "writer3": partial(move.write, 3),
    }


def test_no_acknowledged_write_is_lost_while_its_bucket_moves(move: Move) -> None:
    explored = move.explorer.explore(
        partial(moving, move),
        invariant=move.nothing_is_lost,
        max_preemptions=1,
        # Two writers that are refused at once read the map again side by side, over a pool
        # of one connection that is not gated: far into the search, who comes first is chance.
        max_schedules=30,
    )

    assert explored.schedules > 10


def test_a_reader_finds_every_row_wherever_its_bucket_is_or_is_told_that_its_map_is_old(
    move: Move,
) -> None:
    def reading() -> Tasks:
        move.begin()
        return {"reader": move.read, "mover": move.move}

    def the_basket_is_there(outcome: Outcome) -> None:
        assert outcome.results.get("reader", [1]) == [1], "a reader did not find its basket"

    explored = move.explorer.explore(
        reading,
        invariant=the_basket_is_there,
        max_preemptions=PREEMPTIONS + 1,
        allowed_errors=(StaleShardMapError,),
    )

    assert explored.exhausted


def test_a_transaction_of_an_old_map_is_refused_or_moves_along(move: Move) -> None:
    def writing() -> Tasks:
        move.begin()
        return {"writer2": partial(move.write_by_core, 2), "mover": move.move}

    explored = move.explorer.explore(
        writing,
        invariant=move.nothing_is_lost,
        max_preemptions=PREEMPTIONS + 1,
        crash_at=lambda gate: is_commit(gate) and gate.task == "writer2",
        faults=[Fault.CRASH, Fault.REPLY_LOST],
        allowed_errors=(StaleShardMapError,),
        max_schedules=at_most(20),
    )

    assert explored.blocked_steps


def test_without_the_fence_of_its_bucket_a_write_stays_behind(move: Move) -> None:
    guard = (
        "PERFORM pg_advisory_xact_lock_shared(datapatterns.fence_class(in_group), in_buckets[1]);"
    )
    with (
        function_without(
            move.plain[move.source], "datapatterns.claim_buckets", guard, instead="NULL;"
        ),
        pytest.raises(InterleavingError, match="written were"),
    ):
        move.explorer.explore(
            partial(moving, move), invariant=move.nothing_is_lost, max_preemptions=2
        )
