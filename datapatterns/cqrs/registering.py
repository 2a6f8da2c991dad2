"""Which versions of a projection there are, and which of them may run."""

from sqlalchemy import Connection, and_, exists, literal, select, update
from sqlalchemy.dialects.postgresql import insert

from datapatterns.cqrs.definition import AnyProjection, Projection
from datapatterns.cqrs.leasing import RUNNABLE, Lease
from datapatterns.cqrs.schema import ProjectionTables
from datapatterns.errors import ProjectionDefinitionError, ProjectionVersionError


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
        ProjectionVersionError: What is there was built by another version.
    """
    name, version = projection.name, projection.version
    in_table = issubclass(projection, Projection)
    # Versions of a table take each other's place; those in Redis stand side by side.
    found = _versions(conn, tables, name)
    if not found and not empty:
        raise ProjectionVersionError(name, declared=version, live=None)
    if version not in found and (not found or not in_table):
        _insert_version(conn, tables, projection, status="building" if found else "live")
        found = _versions(conn, tables, name)
    if any(kind != _kind(projection) for kind, _ in found.values()):
        raise _taken_name(projection)
    # While a table is rebuilt for this version, another one's rows are in it.
    runnable = ("live",) if in_table else RUNNABLE
    if version not in found or found[version][1] not in runnable:
        live = [v for v, (_, status) in found.items() if status == "live"]
        raise ProjectionVersionError(name, declared=version, live=live[0] if live else None)


def register_build(
    conn: Connection, tables: ProjectionTables, projection: type[AnyProjection]
) -> None:
    """Make sure that this version has a checkpoint, whichever version built what is there.

    Raises:
        ProjectionDefinitionError: The name is taken by a projection of the other kind.
    """
    found = _versions(conn, tables, projection.name)
    if any(kind != _kind(projection) for kind, _ in found.values()):
        raise _taken_name(projection)
    if projection.version not in found:
        # Not live before it is built: a runner must not begin with what is there.
        _insert_version(conn, tables, projection, status="building")
    elif found[projection.version][1] not in RUNNABLE:
        _set_status(conn, tables, projection.name, projection.version, "building")


def take_place(conn: Connection, tables: ProjectionTables, lease: Lease) -> None:
    """Make a version live in the place of all others, which may not run any more."""
    conn.execute(
        update(tables.projections)
        .where(
            tables.projections.c.name == lease.name,
            tables.projections.c.version != lease.version,
        )
        .values(status="retired")
    )
    _set_status(conn, tables, lease.name, lease.version, "live")


def promote(conn: Connection, tables: ProjectionTables, lease: Lease) -> None:
    """Make a version that has been built beside another the live one."""
    projections = tables.projections
    mine = and_(projections.c.name == lease.name, projections.c.version == lease.version)
    if conn.scalar(select(projections.c.status).where(mine)) != "building":
        return
    conn.execute(
        update(projections)
        .where(projections.c.name == lease.name, projections.c.status == "live")
        .values(status="standby")
    )
    _set_status(conn, tables, lease.name, lease.version, "live")


def _versions(conn: Connection, tables: ProjectionTables, name: str) -> dict[int, tuple[str, str]]:
    projections = tables.projections
    rows = conn.execute(
        select(projections.c.version, projections.c.kind, projections.c.status).where(
            projections.c.name == name
        )
    )
    return {version: (kind, status) for version, kind, status in rows}


def _insert_version(
    conn: Connection, tables: ProjectionTables, projection: type[AnyProjection], *, status: str
) -> None:
    # Two processes may start at the same time; the later one finds what the earlier one did.
    key = {"name": projection.name, "version": projection.version}
    conn.execute(
        insert(tables.projections)
        .values(**key, kind=_kind(projection), status=status)
        .on_conflict_do_nothing()
    )
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
    other = "Redis" if issubclass(projection, Projection) else "a table"
    return ProjectionDefinitionError(
        projection.name, f"the name is taken by a projection in {other}; choose another"
    )


def _kind(projection: type[AnyProjection]) -> str:
    return "table" if issubclass(projection, Projection) else "redis"
