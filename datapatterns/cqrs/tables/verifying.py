"""Compare a read model with what the log says, as of the same position."""

from sqlalchemy import Connection, Engine, select

from datapatterns.cqrs.definition import AnyProjection, Projection
from datapatterns.cqrs.running.leasing import ONLY_SHARD, read_live_version, read_position
from datapatterns.cqrs.running.running import fresh_reads
from datapatterns.cqrs.schema import projection_tables
from datapatterns.cqrs.tables.differences import Verification, count_rows, find_differences
from datapatterns.cqrs.tables.read_model import read_model_of
from datapatterns.cqrs.tables.replaying import advance_replay, replayed
from datapatterns.errors import DataPatternsError, ProjectionVersionError, ReadModelBuildingError
from datapatterns.event_sourcing.store import EventStore
from datapatterns.transactions import reading


def verify_table(
    engine: Engine,
    store: EventStore,
    projection: type[Projection],
    *,
    page_events: int,
    limit: int,
) -> Verification:
    """Do what `Projections.verify` promises for a table."""
    model = read_model_of(projection)
    with (
        fresh_reads(engine) as conn,
        replayed(conn, store, projection, page_events=page_events) as replay,
    ):
        with reading(conn):
            position = read_position(conn, projection_tables(store.schema), projection)
            if position is None:
                raise _not_live(conn, store, projection)
        # Most of it while the runner goes on; only the rest and the comparison hold it up.
        advance_replay(conn, replay, until=position)
        with reading(conn):
            _hold(conn, store, projection)
            # A later statement: a rebuild that was waited for may have taken the place.
            position = read_position(conn, projection_tables(store.schema), projection)
            if position is None:
                raise _not_live(conn, store, projection)
            while replay.position < position:
                replay.page(conn, until=position)
            return Verification(
                position,
                count_rows(conn, replay.model),
                find_differences(conn, model, replay.model, limit=limit),
            )


def _hold(conn: Connection, store: EventStore, projection: type[AnyProjection]) -> None:
    # A page under way may write its rows, but cannot commit them before this row is free again.
    shards = projection_tables(store.schema).shards
    conn.execute(
        select(shards.c.position)
        .where(
            shards.c.name == projection.name,
            shards.c.version == projection.version,
            shards.c.shard == ONLY_SHARD,
        )
        .with_for_update()
    ).scalar_one()


def _not_live(
    conn: Connection, store: EventStore, projection: type[AnyProjection]
) -> DataPatternsError:
    live = read_live_version(conn, projection_tables(store.schema), projection)
    if live is None:
        return ReadModelBuildingError(projection.name, position=None)
    return ProjectionVersionError(projection.name, declared=projection.version, live=live)
