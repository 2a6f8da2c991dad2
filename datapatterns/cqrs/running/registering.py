"""Which versions of a projection there are, and which of them may run."""

from dataclasses import dataclass

from sqlalchemy import Connection, and_, exists, false, literal, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from datapatterns.cqrs.definition import AnyProjection, Projection
from datapatterns.cqrs.running.leasing import RUNNABLE, Lease
from datapatterns.cqrs.schema import ProjectionTables
from datapatterns.cqrs.tables.targets import resolve_target
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
        ProjectionDefinitionError: Its table is another projection's, or not the one it built.
        ProjectionVersionError: What is there was built by another version.
    """
    name, version = projection.name, projection.version
    in_table = issubclass(projection, Projection)
    target = resolve_target(conn, projection)
    # Versions of a table take each other's place; those in Redis stand side by side.
    found = _versions(conn, tables, name, target)
    if not found and not empty:
        raise ProjectionVersionError(name, declared=version, live=None)
    if version not in found and (not found or not in_table):
        status = "building" if found else "live"
        _insert_version(conn, tables, projection, status=status, target=target)
        found = _versions(conn, tables, name, target)
    if any(known.kind != _kind(projection) for known in found.values()):
        raise _taken_name(projection)
    # While a table is rebuilt for this version, another one's rows are in it.
    runnable = ("live",) if in_table else RUNNABLE
    if version not in found or found[version].status not in runnable:
        live = [v for v, known in found.items() if known.status == "live"]
        raise ProjectionVersionError(name, declared=version, live=live[0] if live else None)
    if found[version].target != target:
        raise ProjectionDefinitionError(
            name, f"its rows are in {found[version].target}, not in {target}; rebuild it there"
        )


def register_build(
    conn: Connection, tables: ProjectionTables, projection: type[AnyProjection]
) -> None:
    """Make sure that this version has a checkpoint, whichever version built what is there.

    Raises:
        ProjectionDefinitionError: Its name is taken by a projection of the other kind, or its
            table by another one.
    """
    target = resolve_target(conn, projection)
    found = _versions(conn, tables, projection.name, target)
    if any(known.kind != _kind(projection) for known in found.values()):
        raise _taken_name(projection)
    if projection.version not in found:
        # Not live before it is built: a runner must not begin with what is there.
        _insert_version(conn, tables, projection, status="building", target=target)
    elif found[projection.version].status not in RUNNABLE:
        _set_status(conn, tables, projection.name, projection.version, "building")


def take_place(
    conn: Connection, tables: ProjectionTables, lease: Lease, *, target: str | None
) -> None:
    """Make a version live in the place of all others, which may not run any more."""
    projections = tables.projections
    conn.execute(
        update(projections)
        .where(projections.c.name == lease.name, projections.c.version != lease.version)
        .values(status="retired")
    )
    conn.execute(
        update(projections)
        .where(projections.c.name == lease.name, projections.c.version == lease.version)
        .values(status="live", target=target)
    )


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


@dataclass(frozen=True, slots=True)
class _Version:
    kind: str
    status: str
    target: str | None


def _versions(
    conn: Connection, tables: ProjectionTables, name: str, target: str | None
) -> dict[int, _Version]:
    columns = tables.projections.c
    # None is no table: read models in Redis have keys of their own.
    in_target = false() if target is None else columns.target == target
    rows = conn.execute(
        select(columns.name, columns.version, columns.kind, columns.status, columns.target).where(
            or_(columns.name == name, and_(in_target, columns.status == "live"))
        )
    ).all()
    owners = {row.name for row in rows} - {name}
    if owners:
        raise _taken_table(name, target, owners.pop())
    return {version: _Version(kind, status, target) for _, version, kind, status, target in rows}


def _insert_version(
    conn: Connection,
    tables: ProjectionTables,
    projection: type[AnyProjection],
    *,
    status: str,
    target: str | None,
) -> None:
    # Two processes may start at the same time; the later one finds what the earlier one did.
    key = {"name": projection.name, "version": projection.version}
    conn.execute(
        insert(tables.projections)
        .values(**key, kind=_kind(projection), status=status, target=target)
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


def _taken_table(name: str, target: str | None, owner: str) -> ProjectionDefinitionError:
    return ProjectionDefinitionError(
        name,
        f"{target} is the read model of {owner}; give it a table of its own, or if only its class"
        f' was renamed, name="{owner}"',
    )


def _kind(projection: type[AnyProjection]) -> str:
    return "table" if issubclass(projection, Projection) else "redis"
