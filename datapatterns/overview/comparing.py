"""How each pattern compares what it has derived with what that is derived from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from sqlalchemy import Engine, Table

from datapatterns.cache_aside import CachedFunction
from datapatterns.cqrs import AnyProjection, Projections
from datapatterns.errors import ConflictError, IndexBehindError
from datapatterns.event_sourcing import EventStore, HashChain
from datapatterns.index_table import Indexes, ShardIndexes
from datapatterns.materialized_view import MaterializedView, Views
from datapatterns.overview.databases import asked
from datapatterns.sharding import ShardCluster

T = TypeVar("T")

_ATTEMPTS_MAX: Final = 5
_WHOLE_VIEWS: Final = ("fresh", "stale", "overdue")
_WHOLE_PROJECTIONS: Final = ("ready", "live", "standby")
_WHOLE_INDEXES: Final = ("built", "detached", "ready")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Nothing was compared, since this is not whole.

    Attributes:
        reason: Why not.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class Compared:
    """What a comparison has found.

    Attributes:
        rows: How many rows, entries or events were compared.
        differing: How many differ, as far as was counted.
        reason: What that means.
        advice: What mends it.
    """

    rows: int
    differing: int
    reason: str
    advice: str


def view_compared(
    engine: Engine, views: Views, view: MaterializedView, *, sample: float | None
) -> Compared | LeftOut:
    """Compare a view with its query."""
    statuses = asked(engine, "main", lambda conn: views.status(conn, limit=1))
    state = next(one.state for one in statuses if one.name == view.name)
    if state.value not in _WHOLE_VIEWS:
        return LeftOut(f"it is {state.value}")
    found = _again(lambda: views.verify(engine, view, sample=sample))
    return Compared(
        found.rows,
        len(found.differences),
        "it is not what its query gives",
        f"datapatterns views rebuild {view.name}",
    )


def projection_compared(
    engine: Engine,
    projections: Projections,
    projection: type[AnyProjection],
    *,
    sample: float | None,
) -> Compared | LeftOut:
    """Compare a read model with a replay of the log; one by statements always as a whole."""
    standing = {
        (one.name, one.version): one.status for one in asked(engine, "main", projections.status)
    }
    status = standing.get((projection.name, projection.version), "never run")
    if status not in _WHOLE_PROJECTIONS:
        return LeftOut(f"it is {status}" if status != "never run" else "it was never run")
    part = sample if projection.handlers else None
    found = _again(lambda: projections.verify(engine, projection, sample=part))
    return Compared(
        found.rows,
        len(found.differences),
        "it is not what the log says",
        f"datapatterns projections rebuild {projection.name}",
    )


def index_compared(
    engine: Engine, indexes: Indexes, name: str, *, database: str
) -> Compared | LeftOut:
    """Compare an index table with its table, both ways."""
    [report] = asked(engine, database, lambda conn: indexes.status(conn, [name]))
    if report.state not in _WHOLE_INDEXES:
        return LeftOut(f"it is {report.state}")
    try:
        found = indexes.verify(engine, [name])[name]
    except IndexBehindError:
        return LeftOut("it has to read all rows anew first")
    return Compared(
        found.rows,
        found.missing + found.orphaned + found.different,
        "it is not what its table says",
        f"datapatterns indexes repair {name}",
    )


def shard_index_compared(cluster: ShardCluster, name: str) -> Compared | LeftOut:
    """Compare an index over shards with its table, both ways."""
    indexes = ShardIndexes.of(cluster)
    [status] = indexes.status(cluster, [name])
    if status.state not in ("verifying", "ready", "failed"):
        return LeftOut(f"it is {status.state}")
    found = indexes.verify(cluster, [name])[name]
    differing = found.missing + found.different
    if found.undecided and not differing:  # work in flight is no damage, and proves nothing
        return LeftOut(f"somebody is about to change the keys of {found.undecided} rows")
    return Compared(
        found.rows,
        differing,
        "it is not what its table says",
        f"datapatterns indexes repair {name} --cluster MODULE:NAME",
    )


def cache_compared(name: str, function: CachedFunction[..., Any], *, limit: int) -> Compared:
    """Compare cached entries with the database."""
    found = function.audit(limit=limit)
    return Compared(
        found.checked,
        len(found.violations),
        "entries are not what the database says: a write was not named",
        f"datapatterns cache audit {name} --repair",
    )


def chain_compared(engine: Engine, store: EventStore) -> Compared | LeftOut:
    """Hash all sealed events again."""
    with engine.connect().execution_options(isolation_level="READ COMMITTED") as conn:
        found = HashChain(store).verify(conn)
    if found.broken is None and not found.segments:
        return LeftOut("nothing was sealed")
    broken = "" if found.broken is None else found.broken.reason
    return Compared(
        found.events,
        int(not found.intact),
        f"sealed events are not what they were: {broken}",
        "datapatterns events verify-chain",
    )


def copies_compared(cluster: ShardCluster, table: Table) -> Compared:
    """Compare the copies of a broadcast table."""
    found = cluster.verify_broadcast(table)
    return Compared(
        sum(found.rows.values()),
        len(found.differences),
        f"copies on {', '.join(found.differences)} differ from that on {found.source}",
        f"datapatterns shards broadcast repair {found.table} --source SHARD",
    )


def placement_compared(cluster: ShardCluster) -> Compared:
    """Look for rows in buckets that their shard does not own: no routed read finds them."""
    tables = [table for shard in cluster.stats() for table in shard.tables]
    return Compared(
        sum(table.rows for table in tables),
        sum(table.misplaced for table in tables),
        "rows lie where nobody looks for them: somebody wrote past the library",
        "datapatterns shards stats",
    )


def declared_where(engine: Engine, database: str, indexes: Indexes) -> list[str]:
    """Return the names of those indexes whose table is in this database."""
    reports = asked(engine, database, indexes.status)
    return [one.name for one in reports if one.state != "no_table"]


def _again(compare: Callable[[], T]) -> T:
    """Return what ``compare`` finds, also if its table was truncated or swapped meanwhile."""
    for _ in range(_ATTEMPTS_MAX - 1):
        try:
            return compare()
        except ConflictError:
            continue
    return compare()
