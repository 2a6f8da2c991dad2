"""Which versions of a projection there are, and which of them may run."""

from dataclasses import dataclass, replace

from sqlalchemy import Connection, and_, delete, exists, literal, select, update
from sqlalchemy.dialects.postgresql import insert

from datapatterns.cqrs.definition import AnyProjection, TableProjection
from datapatterns.cqrs.running.events_elsewhere import begin_to_follow
from datapatterns.cqrs.running.leasing import RUNNABLE, WHOLE_STATES, Lease
from datapatterns.cqrs.schema import ProjectionTables, projection_tables
from datapatterns.cqrs.tables.read_model import read_models_of
from datapatterns.cqrs.tables.targets import resolve_targets
from datapatterns.errors import ProjectionDefinitionError, ProjectionVersionError
from datapatterns.event_sourcing.store import EventStore


def register(
    conn: Connection, tables: ProjectionTables, projection: type[AnyProjection], *, empty: bool
) -> None:
    """Make sure that ``projection`` may run as it is declared, and that it has a checkpoint.

    Args:
        conn: A connection in a transaction.
        tables: Where the checkpoints are.
        projection: What to run.
        empty: Whether its read model is known to hold nothing.

    Raises:
        ProjectionDefinitionError: Its table is another projection's, or not the one it built.
        ProjectionVersionError: What is there was built by another version.
    """
    name, version = projection.name, projection.version
    in_table = issubclass(projection, TableProjection)
    targets = resolve_targets(conn, projection)
    _refuse_taken(conn, tables, name, targets)
    # A version in tables is built beside the live one, by a rebuild; one in Redis by running it.
    found = _versions(conn, tables, name)
    if not found and not empty:
        raise ProjectionVersionError(name, declared=version, live=None)
    if version not in found and (not found or not in_table):
        status = "building" if found else "live"
        _insert_version(conn, tables, projection, status=status, targets=targets)
        found = _versions(conn, tables, name)
    if any(known.kind != _kind(projection) for known in found.values()):
        raise _taken_name(projection)
    # What is half built in tables, nobody but its builder may move on.
    runnable = WHOLE_STATES if in_table else RUNNABLE
    if version not in found or found[version].status not in runnable:
        live = [v for v, known in found.items() if known.status == "live"]
        raise ProjectionVersionError(name, declared=version, live=live[0] if live else None)
    if (there := found[version].targets) != targets:
        raise ProjectionDefinitionError(
            name, f"its rows are in {_listed(there)}, not in {_listed(targets)}; rebuild it there"
        )


def register_to_follow(
    conn: Connection, store: EventStore, projection: type[AnyProjection]
) -> None:
    """Do as `register` does with what is there, and say where the events are that it follows.

    Raises:
        ProjectionDefinitionError: Its table is another projection's, or not the one it built.
        ProjectionVersionError: What is there was built by another version.
    """
    tables = projection_tables(store.schema)
    register(conn, tables, projection, empty=is_empty(conn, projection))
    # With it, not with the first page: from now on the read model may be queried.
    begin_to_follow(conn, tables, store, projection)


def is_empty(conn: Connection, projection: type[AnyProjection]) -> bool:
    """Return whether a projection that was never run can begin with what is there."""
    if not issubclass(projection, TableProjection):
        return True  # a read model in Redis says itself what it holds
    return all(
        conn.execute(select(1).select_from(model.table).limit(1)).first() is None
        for model in read_models_of(projection).values()
    )


def register_build(
    conn: Connection, tables: ProjectionTables, projection: type[AnyProjection]
) -> None:
    """Make sure that this version has a checkpoint, whichever version built what is there.

    Raises:
        ProjectionDefinitionError: Its name is taken by a projection of the other kind, or its
            table by another one.
    """
    targets = resolve_targets(conn, projection)
    _refuse_taken(conn, tables, projection.name, targets)
    found = _versions(conn, tables, projection.name)
    if any(known.kind != _kind(projection) for known in found.values()):
        raise _taken_name(projection)
    if projection.version not in found:
        # Not live before it is built: a runner must not begin with what is there.
        _insert_version(conn, tables, projection, status="building", targets=targets)
    elif found[projection.version].status not in RUNNABLE:
        _set_status(conn, tables, projection.name, projection.version, "building")


def take_place(
    conn: Connection, tables: ProjectionTables, lease: Lease, *, targets: list[str]
) -> None:
    """Make a version that was built in the live tables the live one."""
    projections = tables.projections
    conn.execute(
        update(projections)
        .where(projections.c.name == lease.name, projections.c.version == lease.version)
        .values(status="live", targets=targets, shadows={})
    )
    owned = tables.owned
    conn.execute(delete(owned).where(owned.c.name == lease.name, owned.c.target.not_in(targets)))
    own_tables(conn, tables, lease.name, targets)


def own_tables(conn: Connection, tables: ProjectionTables, name: str, targets: list[str]) -> None:
    """Write down that these tables are the read model of ``name``.

    Raises:
        ProjectionDefinitionError: One is another projection's.
    """
    if not targets:
        return
    owned = tables.owned
    # An update that changes nothing, or nothing would be returned of a row that is there.
    mine = insert(owned).values([{"target": target, "name": name} for target in targets])
    kept = mine.on_conflict_do_update(index_elements=["target"], set_={"name": owned.c.name})
    for target, owner in conn.execute(kept.returning(owned.c.target, owned.c.name)):
        if owner != name:
            raise _taken_table(name, target, owner)


def promote(conn: Connection, tables: ProjectionTables, lease: Lease) -> Lease:
    """Make a version that has been built beside another the live one, and return its lease."""
    projections = tables.projections
    mine = and_(projections.c.name == lease.name, projections.c.version == lease.version)
    if conn.scalar(select(projections.c.status).where(mine)) != "building":
        return lease
    conn.execute(
        update(projections)
        .where(projections.c.name == lease.name, projections.c.status == "live")
        .values(status="standby")
    )
    _set_status(conn, tables, lease.name, lease.version, "live")
    return replace(lease, status="live")


@dataclass(frozen=True, slots=True)
class _Version:
    kind: str
    status: str
    targets: list[str]


def _versions(conn: Connection, tables: ProjectionTables, name: str) -> dict[int, _Version]:
    columns = tables.projections.c
    rows = conn.execute(
        select(columns.version, columns.kind, columns.status, columns.targets).where(
            columns.name == name
        )
    ).all()
    return {version: _Version(kind, status, targets) for version, kind, status, targets in rows}


def _refuse_taken(
    conn: Connection, tables: ProjectionTables, name: str, targets: list[str]
) -> None:
    owned = tables.owned.c
    taken = conn.execute(
        select(owned.target, owned.name)
        .where(owned.target.in_(targets), owned.name != name)
        .order_by(owned.target)
        .limit(1)
    ).one_or_none()
    if taken is not None:
        raise _taken_table(name, *taken)


def _insert_version(
    conn: Connection,
    tables: ProjectionTables,
    projection: type[AnyProjection],
    *,
    status: str,
    targets: list[str],
) -> None:
    # Two processes may start at the same time; the later one finds what the earlier one did.
    key = {"name": projection.name, "version": projection.version}
    conn.execute(
        insert(tables.projections)
        .values(**key, kind=_kind(projection), status=status, targets=targets)
        .on_conflict_do_nothing()
    )
    if status == "live":
        own_tables(conn, tables, projection.name, targets)
    known = exists().where(
        tables.projections.c.name == projection.name,
        tables.projections.c.version == projection.version,
    )
    conn.execute(
        insert(tables.shards)
        .from_select(
            ["name", "version"],
            select(literal(projection.name), literal(projection.version)).where(known),
        )
        .on_conflict_do_nothing()
    )


def _set_status(
    conn: Connection, tables: ProjectionTables, name: str, version: int, status: str
) -> None:
    conn.execute(
        update(tables.projections)
        .where(tables.projections.c.name == name, tables.projections.c.version == version)
        .values(status=status)
    )


def _taken_name(projection: type[AnyProjection]) -> ProjectionDefinitionError:
    other = "Redis" if issubclass(projection, TableProjection) else "a table"
    return ProjectionDefinitionError(
        projection.name, f"the name is taken by a projection in {other}; choose another"
    )


def _taken_table(name: str, target: str, owner: str) -> ProjectionDefinitionError:
    return ProjectionDefinitionError(
        name,
        f"{target} is the read model of {owner}; give it a table of its own, or if only its class"
        f' was renamed, name="{owner}"',
    )


def _listed(targets: list[str]) -> str:
    return " and ".join(targets)


def _kind(projection: type[AnyProjection]) -> str:
    return "table" if issubclass(projection, TableProjection) else "redis"
