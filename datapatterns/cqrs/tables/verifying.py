"""Compare a read model with what the log says, as of the same position."""

from collections.abc import Hashable

from sqlalchemy import Connection, Engine, func, select

from datapatterns.cqrs.definition import AnyProjection, TableProjection
from datapatterns.cqrs.running.leasing import read_live_version, read_position
from datapatterns.cqrs.running.modes import read_mode
from datapatterns.cqrs.running.running import fresh_reads
from datapatterns.cqrs.running.segments import WHOLE, Segment
from datapatterns.cqrs.schema import projection_tables
from datapatterns.cqrs.tables.differences import (
    Difference,
    Verification,
    count_rows,
    find_differences,
)
from datapatterns.cqrs.tables.inline_locks import mode_lock
from datapatterns.cqrs.tables.leaving_out import read_left_out
from datapatterns.cqrs.tables.read_model import ReadModels, read_models_of
from datapatterns.cqrs.tables.replaying import AnyReplay, advance_replay, replayed
from datapatterns.errors import DataPatternsError, ProjectionVersionError, ReadModelBuildingError
from datapatterns.event_sourcing.events import Position
from datapatterns.event_sourcing.store import EventStore
from datapatterns.transactions import reading


def verify_table(
    engine: Engine,
    store: EventStore,
    projection: type[TableProjection],
    *,
    page_events: int,
    limit: int,
) -> Verification:
    """Do what `Projections.verify` promises for a table."""
    with (
        fresh_reads(engine) as conn,
        replayed(conn, store, projection, page_events=page_events) as replay,
    ):
        with reading(conn):
            position = read_position(conn, projection_tables(store.schema), projection)
            if position is None:
                raise _not_live(conn, store, projection)
            _leave_out(conn, replay)
        # Most of it while the runners go on; only the rest and the comparison hold them up.
        advance_replay(conn, replay, until=position)
        with reading(conn):
            segments = _hold(conn, store, projection)
            # A later statement: another version that was waited for may have taken the place.
            if read_position(conn, projection_tables(store.schema), projection) is None:
                raise _not_live(conn, store, projection)
            _leave_out(conn, replay)  # what was parked or skipped meanwhile, too
            reached = min(segments.values())
            replay.pages(conn, until=reached)
            for segment, ahead in segments.items():
                replay.of_segment(segment).pages(conn, until=ahead)
            return _compare(conn, read_models_of(projection), replay, limit)


def _compare(conn: Connection, models: ReadModels, replay: AnyReplay, limit: int) -> Verification:
    rows, differences = 0, list[Difference]()
    left_out = replay.left_out
    for table, model in models.items():
        rows += count_rows(conn, replay.models[table])
        if left := limit - len(differences):
            # Of each row that is left out there may be one difference.
            more = len(left_out.rows) if left_out else 0
            found = find_differences(conn, model, replay.models[table], limit=left + more)
            seen = [one for one in found if not (left_out and left_out.hides(table, _key(one)))]
            differences += seen[:left]
    if left_out is None:
        return Verification(replay.position, rows, differences)
    parked, skipped = len(left_out.rows), len(left_out.parts)
    return Verification(replay.position, rows, differences, parked, skipped)


def _leave_out(conn: Connection, replay: AnyReplay) -> None:
    now = read_left_out(conn, projection_tables(replay.store.schema), replay.projection)
    replay.left_out = now if replay.left_out is None else replay.left_out.and_also(now)


def _key(difference: Difference) -> Hashable:
    return difference.key[0] if len(difference.key) == 1 else difference.key


def _hold(
    conn: Connection, store: EventStore, projection: type[AnyProjection]
) -> dict[Segment, Position]:
    tables = projection_tables(store.schema)
    if read_mode(conn, tables, projection) == "inline":
        # Appends under way end first; others wait until the comparison is done.
        conn.execute(select(func.pg_advisory_xact_lock(mode_lock(store.schema, projection.name))))
        if read_mode(conn, tables, projection) == "inline":
            return {WHOLE: store.high_water_mark(conn)}
    # A page under way may write its rows, but cannot commit them before these rows are free again.
    shards = tables.shards
    held = conn.execute(
        select(shards.c.shard, shards.c.mask, shards.c.position)
        .where(shards.c.name == projection.name, shards.c.version == projection.version)
        .order_by(shards.c.shard)
        .with_for_update()
    )
    return {Segment(shard, mask): Position(position) for shard, mask, position in held}


def _not_live(
    conn: Connection, store: EventStore, projection: type[AnyProjection]
) -> DataPatternsError:
    live = read_live_version(conn, projection_tables(store.schema), projection)
    if live is None:
        return ReadModelBuildingError(projection.name, position=None)
    return ProjectionVersionError(projection.name, declared=projection.version, live=live)
