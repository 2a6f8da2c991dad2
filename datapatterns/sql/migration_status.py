"""Where the library's tables stand, whoever migrated them."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from alembic.script import ScriptDirectory
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    DateTime,
    Identity,
    Table,
    Text,
    func,
    inspect,
    select,
    text,
)

import datapatterns_migrations
from datapatterns.errors import (
    MigrationNeededError,
    SchemaManagedElsewhereError,
    SchemaOccupiedError,
    UnknownRevisionError,
)
from datapatterns.sql.metadata import (
    DEFAULT_SCHEMA,
    checked_schema,
    declared_once,
    library_metadata,
)

BASE = "base"
HEAD = "head"


@dataclass(frozen=True, slots=True)
class Revision:
    """One step of the library's tables."""

    revision: str
    title: str


@dataclass(frozen=True, slots=True)
class MigrationStatus:
    """Where the tables of one schema in one database stand.

    Attributes:
        schema: Where the tables live, or should.
        revision: The revision they are at; None where there are none.
        version_table: The Alembic version table that counts them, ``library_version`` in the
            schema itself unless an application's own environment includes the revisions.
        occupied_by: Tables in the schema that are not the library's, at most three, if it
            has none of its own there.
    """

    schema: str
    revision: str | None
    version_table: str | None
    occupied_by: tuple[str, ...] = ()

    @property
    def pending(self) -> tuple[Revision, ...]:
        """The revisions that are still to come, oldest first."""
        return self.steps_up(HEAD) if self.state == "behind" else ()

    def steps_up(self, revision: str) -> tuple[Revision, ...]:
        """Return the revisions above this one up to ``revision``, oldest first.

        Raises:
            UnknownRevisionError: There is no such revision.
        """
        return revisions()[_place(self.revision) : _place(resolved_revision(revision))]

    def steps_down(self, revision: str) -> tuple[Revision, ...]:
        """Return the revisions from this one down to above ``revision``, newest first.

        Raises:
            UnknownRevisionError: There is no such revision.
        """
        undone = revisions()[_place(resolved_revision(revision)) : _place(self.revision)]
        return tuple(reversed(undone))

    @property
    def managed_elsewhere(self) -> bool:
        """Whether an application's own Alembic environment migrates the tables."""
        return self.version_table not in {None, own_version_table(self.schema)}

    @property
    def state(self) -> str:
        """``current``, ``behind``, ``unknown`` (a newer library) or ``occupied``."""
        known = [revision.revision for revision in revisions()]
        if self.occupied_by:
            return "occupied"
        if self.revision is not None and self.revision not in known:
            return "unknown"
        return "current" if self.revision == known[-1] else "behind"

    def refuse_unless_ours(self) -> None:
        """Check that the library itself may migrate these tables.

        Raises:
            SchemaManagedElsewhereError: An application's own environment does.
            SchemaOccupiedError: They are somebody else's.
            UnknownRevisionError: A newer version of the library did last.
        """
        if self.occupied_by:
            raise SchemaOccupiedError(self.schema, self.occupied_by)
        if self.managed_elsewhere:
            raise SchemaManagedElsewhereError(self.schema, version_table=str(self.version_table))
        if self.revision is not None:
            resolved_revision(self.revision)

    def refuse_unless_current(self) -> None:
        """Check that the tables are at the newest revision.

        Raises:
            MigrationNeededError: They are older.
            SchemaOccupiedError: They are somebody else's.
            UnknownRevisionError: They are newer.
        """
        if self.occupied_by:
            raise SchemaOccupiedError(self.schema, self.occupied_by)
        if self.revision is not None:
            resolved_revision(self.revision)
        newest = revisions()[-1].revision
        if self.revision != newest:
            raise MigrationNeededError(self.schema, found=self.revision, needed=newest)


@declared_once
def migration_table(schema: str, /) -> Table:
    """Return the table whose last row says where the tables stand."""
    return Table(
        "library_migration",
        library_metadata(schema),
        Column("migration_id", BigInteger, Identity(always=True), primary_key=True),
        Column("revision", Text, nullable=False),
        Column("version_table", Text, nullable=False),
        Column(
            "migrated_at",
            DateTime(timezone=True),
            nullable=False,
            server_default=func.clock_timestamp(),
        ),
    )


def own_version_table(schema: str) -> str:
    """Return the name of the version table of the library's own Alembic environment."""
    return f"{schema}.library_version"


def migration_status(conn: Connection, *, schema: str = DEFAULT_SCHEMA) -> MigrationStatus:
    """Return where the library's tables in ``schema`` stand.

    Needs no right but to read them.
    """
    migrations = migration_table(checked_schema(schema))
    if not inspect(conn).has_table(migrations.name, schema=schema):
        return MigrationStatus(schema, None, None, _relations(conn, schema))
    last = conn.execute(
        select(migrations.c.revision, migrations.c.version_table)
        .order_by(migrations.c.migration_id.desc())
        .limit(1)
    ).one_or_none()
    if last is None:  # a record that was emptied by hand tells nothing about the other tables
        return MigrationStatus(schema, None, None, _relations(conn, schema))
    return MigrationStatus(schema, last.revision, last.version_table)


def _relations(conn: Connection, schema: str) -> tuple[str, ...]:
    found = conn.scalars(
        text(
            "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname = :schema AND c.relkind IN ('r', 'p', 'v', 'm', 'f')"
            # What is left after a downgrade to base, and what an extension brought.
            " AND c.relname NOT IN ('library_version', 'library_migration')"
            " AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass"
            "   AND d.objid = c.oid AND d.deptype = 'e')"
            " ORDER BY c.relname LIMIT 3"
        ),
        {"schema": schema},
    )
    return tuple(found)


@cache
def revisions() -> tuple[Revision, ...]:
    """Return all revisions that this version of the library knows, oldest first."""
    scripts = ScriptDirectory(Path(datapatterns_migrations.__file__).parent)
    found = [Revision(script.revision, script.doc) for script in scripts.walk_revisions()]
    return tuple(reversed(found))


def resolved_revision(name: str) -> str | None:
    """Return the revision that ``name`` means; None is ``base``, before the first.

    Raises:
        UnknownRevisionError: There is no such revision.
    """
    known = [revision.revision for revision in revisions()]
    if name == BASE:
        return None
    if name == HEAD:
        return known[-1]
    if name not in known:
        raise UnknownRevisionError(name, newest=known[-1])
    return name


def _place(revision: str | None) -> int:
    return 0 if revision is None else [step.revision for step in revisions()].index(revision) + 1
