"""A read model that has seen events of a log which was lost since: it is noticed, also later."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis import Redis
from sqlalchemy import Engine, NullPool, create_engine, text, update

from datapatterns.cqrs import Projections, RedisChanges, RedisProjection, on
from datapatterns.cqrs.in_redis.redis_keys import RedisKeys
from datapatterns.cqrs.in_redis.redis_projecting import RedisRunner
from datapatterns.cqrs.in_redis.redis_read_model import RedisReadModel
from datapatterns.cqrs.running.leasing import Lease, claim
from datapatterns.cqrs.running.log_witness import (
    WITNESS_EVENTS,
    LogWitness,
    check_witness,
    read_witness,
    read_witnesses,
)
from datapatterns.cqrs.running.registering import register
from datapatterns.cqrs.schema import projection_tables
from datapatterns.embedded import EmbeddedServers, PostgresServer
from datapatterns.errors import CheckpointError, LogChangedError
from datapatterns.event_sourcing import EventStore, HashChain, Position, RecordedEvent
from datapatterns.sql.migrating import upgrade
from datapatterns.testing.faults.data_folders import clear_folder, copy_into
from tests.fixtures.archives import CART, archive, compacted, exported
from tests.fixtures.archives import store as archived
from tests.fixtures.read_models import DoorOpened, ItemScanned, append, append_all

STORE = EventStore()
SCHEMA = STORE.schema
TABLES = projection_tables(SCHEMA)

pytestmark = pytest.mark.postgres


class Scans(RedisProjection, version=1):
    @on(ItemScanned)
    def _(self, changes: RedisChanges, e: ItemScanned, _meta: RecordedEvent) -> None:
        changes.increment("scans", e.product)


@dataclass
class Shop:
    """A server of its own, of which a backup can be put back."""

    server: PostgresServer
    data: Path
    backup: Path

    @property
    @contextmanager
    def engine(self) -> Iterator[Engine]:
        engine = create_engine(self.server.url, poolclass=NullPool)
        yield engine
        engine.dispose()

    def scan(self, *products: str) -> Position:
        with self.engine as engine:
            return append_all(engine, STORE, [ItemScanned(product, 1) for product in products])

    def write_backup(self) -> None:
        self.server.stop()
        self.copy_data()
        self.server.start()

    def copy_data(self) -> None:
        clear_folder(self.backup)
        copy_into(self.backup, self.data)
        (self.backup / "postmaster.pid").unlink(missing_ok=True)

    def restore_backup(self) -> None:
        self.server.kill()
        clear_folder(self.data)
        copy_into(self.data, self.backup)
        self.server.start()

    def catch_up(self, projections: Projections) -> None:
        with self.engine as engine:
            projections.catch_up(engine, Scans)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with EmbeddedServers(durable=False) as servers:
        server = servers.postgres("restored")
        data = servers.folder / "servers" / "restored" / "data"
        shop = Shop(server, data, tmp_path_factory.mktemp("backup"))
        with shop.engine as engine, engine.begin() as conn:
            upgrade(conn)
        yield shop


@pytest.fixture
def projections(redis_client: Redis) -> Projections:
    return Projections(STORE, redis=redis_client)


def shown(projections: Projections) -> dict[str, str]:
    return projections.view(Scans).hash("scans")


def told(engine: Engine, projections: Projections) -> str | None:
    with engine.begin() as conn:
        (status,) = projections.status(conn)
    return None if status.error is None else str(status.error["error"])


def events_at_positions_that_were_shown(shop: Shop, projections: Projections) -> None:
    shop.write_backup()
    shop.scan("lost", "lost")
    shop.catch_up(projections)
    shop.restore_backup()


def events_at_positions_that_were_rolled_back(shop: Shop, projections: Projections) -> None:
    shop.write_backup()
    with shop.engine as engine, engine.connect() as conn:
        append(conn, STORE, [ItemScanned("undone", 1)] * 5)
        conn.rollback()
    shop.catch_up(projections)  # beyond what was drawn, to where nothing is
    shop.restore_backup()


def an_event_that_became_visible_late(shop: Shop, projections: Projections) -> None:
    with shop.engine as engine, engine.connect() as late:
        append(late, STORE, [ItemScanned("lost", 1)], basket="late")
        with engine.connect() as other:  # the same stream would wait
            append(other, STORE, [ItemScanned("kept", 1)], basket="other")
            other.commit()
            other.execute(text("CHECKPOINT"))
        shop.copy_data()
        late.commit()
    shop.catch_up(projections)
    shop.restore_backup()


def events_that_concern_nobody(shop: Shop, projections: Projections) -> None:
    shop.write_backup()
    with shop.engine as engine:
        append_all(engine, STORE, [DoorOpened()] * 2)
    shop.catch_up(projections)
    shop.restore_backup()


LOSSES = [
    events_at_positions_that_were_shown,
    events_at_positions_that_were_rolled_back,
    events_that_concern_nobody,
    an_event_that_became_visible_late,
]


@pytest.mark.parametrize("lose", LOSSES)
def test_a_log_that_lost_its_end_is_noticed_when_it_has_grown_past_the_checkpoint(
    shop: Shop, projections: Projections, lose: Callable[[Shop, Projections], None]
) -> None:
    """And the control: who trusts the position shows something else than the log says."""
    shop.scan("before")
    shop.catch_up(projections)
    lose(shop, projections)
    with pytest.raises((CheckpointError, LogChangedError)):
        shop.catch_up(projections)  # while Redis is ahead
    shop.scan(*["new"] * 10)

    for _ in range(2):
        with pytest.raises(LogChangedError, match="rebuild"):
            shop.catch_up(projections)
    with pytest.MonkeyPatch.context() as patch, shop.engine as engine:
        assert told(engine, projections) == "LogChangedError"
        patch.setattr(
            "datapatterns.cqrs.in_redis.redis_projecting.check_witness", lambda *_, **__: None
        )
        projections.catch_up(engine, Scans)
        assert not projections.verify(engine, Scans).matches
        patch.undo()
        projections.rebuild(engine, Scans)
        assert told(engine, projections) is None
        assert projections.verify(engine, Scans).matches


def test_a_page_that_is_read_after_the_loss_is_not_applied(
    shop: Shop, projections: Projections, redis_client: Redis
) -> None:
    """A runner keeps its lease where the checkpoints are, while another server loses events."""
    shop.scan("before")
    shop.catch_up(projections)
    model = RedisReadModel(redis_client, RedisKeys(SCHEMA, "scans", 1))
    runner = RedisRunner(STORE, Scans, model, page_events=100)
    shop.write_backup()
    shop.scan("lost", "lost")
    with shop.engine as engine, engine.connect() as conn:
        lease, _ = runner.page(conn, runner.begin(conn, claimed(engine)))
    shop.restore_backup()
    shop.scan(*["new"] * 10)
    with shop.engine as engine, engine.connect() as conn:
        put_back(engine, claimed(engine), lease)

        with pytest.raises(LogChangedError):
            runner.page(conn, lease)

    checkpoint = model.checkpoint()
    assert checkpoint is not None
    assert checkpoint.position == lease.position


def claimed(engine: Engine) -> Lease:
    with engine.begin() as conn:
        conn.execute(text("UPDATE datapatterns.projection_shard SET lease_until = NULL"))
        register(conn, TABLES, Scans, empty=True)
        (lease,) = claim(conn, TABLES, Scans, owner="runner", seconds=60)
        return lease


def put_back(engine: Engine, found: Lease, lease: Lease) -> None:
    shards = TABLES.shards
    with engine.begin() as conn:
        conn.execute(
            update(shards)
            .where(shards.c.name == found.name)
            .values(position=lease.position, epoch=lease.epoch, build=lease.build)
        )


def test_a_witness_knows_the_newest_events_and_bears_archiving_and_purges(engine: Engine) -> None:
    compacted(engine, 10)  # they are in the archive
    with engine.connect() as conn:
        end = archived.high_water_mark(conn)
        witness = read_witness(conn, SCHEMA, end)
        check_witness(conn, SCHEMA, witness, end, followed_by="x")
    with engine.begin() as conn:
        HashChain(archived).seal(conn)
        export, _ = exported(conn, 4)
        assert archive.purge(conn, CART, export, reason="old") == 4

    with engine.connect() as conn:
        assert len(witness.events) == 11
        assert len(read_witness(conn, SCHEMA, end).events) == 7
        check_witness(conn, SCHEMA, witness, end, followed_by="x")
        # The control: without the word that it leaves, they are lost.
        conn.execute(text("SET LOCAL session_replication_role = replica"))
        conn.execute(text("DELETE FROM datapatterns.event_tombstone WHERE position = 3"))
        with pytest.raises(LogChangedError):
            check_witness(conn, SCHEMA, witness, end, followed_by="x")


def test_a_witness_of_a_long_log_is_bounded_and_says_the_same_of_both_ends(engine: Engine) -> None:
    append_all(engine, STORE, [DoorOpened()] * (2 * WITNESS_EVENTS))
    with engine.connect() as conn:
        at, to = Position(WITNESS_EVENTS + 3), Position(2 * WITNESS_EVENTS)
        both = read_witnesses(conn, SCHEMA, at, to)

        assert both == (read_witness(conn, SCHEMA, at), read_witness(conn, SCHEMA, to))
        assert [position for position, _ in both[0].events] == list(range(4, at + 1))
        assert read_witnesses(conn, SCHEMA, Position(0), at)[0] == LogWitness()
        with pytest.raises(LogChangedError):
            check_witness(conn, SCHEMA, LogWitness(), at, followed_by="x")
