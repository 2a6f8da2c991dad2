"""Drop what a version that is not live has, once nobody wants to go back to it."""

from collections.abc import Callable

from sqlalchemy import Connection, Engine

from datapatterns.cqrs.building.beginning import drop_shadows
from datapatterns.cqrs.building.version_records import (
    VersionRecord,
    fence,
    forget_unapplied,
    hold_versions,
    read_versions,
    write_version,
)
from datapatterns.cqrs.schema import projection_tables
from datapatterns.errors import PromotionRefusedError
from datapatterns.failpoints import failpoint
from datapatterns.sql.server import library_errors
from datapatterns.transactions import fresh_reads, resuming


def retire_version(
    engine: Engine,
    schema: str,
    name: str,
    version: int,
    *,
    clear: Callable[[Connection], None] | None,
) -> list[str]:
    """Do what `Projections.retire` promises.

    Args:
        engine: Where the tables are.
        schema: Where the library's tables are.
        name: The projection's.
        version: Which one.
        clear: Removes what is elsewhere, under a lease of its own; before it is forgotten here.
    """
    with library_errors("the database"), fresh_reads(engine) as conn:
        this = f"retiring version {version} of projection {name}"
        with resuming(conn, this):
            record = checked(conn, schema, name, version)
        if record.status == "retired":
            return []
        if clear is not None:
            clear(conn)
            failpoint("retire.cleared")
        with resuming(conn, this):
            hold_versions(conn, schema, name, [version])
            record = checked(conn, schema, name, version)
            dropped = drop_shadows(conn, record)
            fence(conn, projection_tables(schema), name, [version])
            forget_unapplied(conn, projection_tables(schema), name, version)
            write_version(
                conn,
                projection_tables(schema),
                record,
                status="retired",
                targets=record.targets,
                shadows={},
            )
        return dropped


def checked(conn: Connection, schema: str, name: str, version: int) -> VersionRecord:
    """Return the version if it can be retired.

    Raises:
        PromotionRefusedError: It is live, or there is none.
    """
    record = read_versions(conn, projection_tables(schema), name).get(version)
    if record is None:
        raise PromotionRefusedError(name, version, "there is none; look at the status")
    if record.status == "live":
        raise PromotionRefusedError(
            name, version, "it is what readers read; promote another version first"
        )
    return record
