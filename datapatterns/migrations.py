"""Migrations of all databases that an application declares, each in one transaction of its own."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy import URL, Connection

from datapatterns.connecting import open_engine
from datapatterns.errors import CommitUnansweredError, SchemaDriftError, SettingsError
from datapatterns.failpoints import failpoint
from datapatterns.sql.metadata import DEFAULT_SCHEMA
from datapatterns.sql.migrating import TURN_WAIT_SECONDS, downgrade, migration_sql, upgrade
from datapatterns.sql.migration_status import (
    BASE,
    HEAD,
    MigrationStatus,
    Revision,
    migration_status,
    revisions,
)
from datapatterns.sql.schema_comparison import schema_differences
from datapatterns.sql.server import check_server, library_errors
from datapatterns.transactions import reading, resuming
from datapatterns.urls import shown_database

__all__ = ["MigrationStatus", "Migrations", "Report", "Revision"]

Steps = tuple[Revision, ...]

Report = Callable[[str, tuple[Revision, ...]], None]
"""Is told the name of a database and the revisions that ran there, once they are committed."""


@dataclass(frozen=True, slots=True)
class Migrations:
    """Migrates the library's tables in every database of an application.

    Each database is one transaction: it is migrated or it is as before. They go one after
    the other; when one fails, those before it are done, those after it untouched, and running the
    same again goes on from there.

    Attributes:
        databases: The databases by the name that output and errors call them.
        schema: Where the library's tables live in each.
    """

    databases: Mapping[str, URL] = field(repr=False)
    schema: str = DEFAULT_SCHEMA
    connect_timeout_seconds: float = 5.0

    def status(self) -> dict[str, MigrationStatus]:
        """Return where the tables of each database stand; changes nothing."""
        self._refuse_none()
        found = {}
        for name in self.databases:
            with self._reading(name) as conn:
                check_server(conn)
                found[name] = migration_status(conn, schema=self.schema)
        return found

    def plan(self, revision: str = HEAD, *, down: bool = False) -> dict[str, tuple[Revision, ...]]:
        """Return what `upgrade`, or `downgrade` if ``down``, would run in each database.

        Raises the errors that they would raise before they change anything.
        """
        planned = {}
        for name, status in self.status().items():
            with self._named(name):
                status.refuse_unless_ours()
                planned[name] = (status.steps_down if down else status.steps_up)(revision)
        return planned

    def upgrade(
        self,
        revision: str = HEAD,
        *,
        wait_seconds: float = TURN_WAIT_SECONDS,
        report: Report | None = None,
    ) -> None:
        """Upgrade each database to ``revision``; one that is there or beyond stays as it is.

        All databases are looked at before the first is changed, so a shard that is away or too
        old stops the run while nothing has happened yet.
        """
        self.plan(revision)
        for name in self.databases:
            ran = self._done(
                name,
                lambda conn: upgrade(conn, revision, schema=self.schema, wait_seconds=wait_seconds),
            )
            failpoint("migration.committed")
            if report is not None:
                report(name, ran)

    def downgrade(
        self,
        revision: str,
        *,
        wait_seconds: float = TURN_WAIT_SECONDS,
        report: Report | None = None,
    ) -> None:
        """Take each database back to ``revision``, with the data in the tables that go.

        ``base`` removes all of the library's tables.
        """
        self.plan(revision, down=True)
        for name in self.databases:
            undone = self._done(
                name,
                lambda conn: downgrade(
                    conn, revision, schema=self.schema, wait_seconds=wait_seconds
                ),
            )
            if report is not None:
                report(name, undone)

    def check(self, *, revision_only: bool = False) -> None:
        """Check that every database has exactly the tables that this version works with.

        What the tables should be is found by running the migrations in a schema beside them, in
        a transaction that is undone: this needs the right to create a schema.

        Args:
            revision_only: Trust the recorded revision; needs only the right to read it.

        Raises:
            MigrationNeededError: The tables are older, or not there.
            SchemaDriftError: They were changed by hand.
            UnknownRevisionError: They are newer.
        """
        for name, status in self.status().items():
            with self._named(name):
                status.refuse_unless_current()
            if revision_only:
                continue
            with self._reading(name) as conn:
                differences = schema_differences(conn, schema=self.schema)
            if differences:
                with self._named(name):
                    raise SchemaDriftError(self.schema, differences)

    def sql(self, revision: str = HEAD, *, start: str = BASE) -> str:
        """Return the SQL from ``start`` to ``revision``, one transaction; asks no database."""
        return migration_sql(revision, start=start, schema=self.schema)

    def revisions(self) -> tuple[Revision, ...]:
        """Return all revisions that this version of the library knows, oldest first."""
        return revisions()

    def _refuse_none(self) -> None:
        if not self.databases:
            raise SettingsError(
                "database URL",
                "there is no database to migrate; set DATAPATTERNS_DATABASE_URL",
            )

    def _done(self, name: str, migrate: Callable[[Connection], Steps]) -> Steps:
        """Return the revisions that ``migrate`` has run and committed."""
        try:
            with self._connection(name) as conn, resuming(conn, "a migration"):
                ran = migrate(conn)
        except CommitUnansweredError:
            # If that was committed there is nothing left to do.
            with self._connection(name) as conn, resuming(conn, "a migration"):
                ran = migrate(conn) or ran
        return ran

    @contextmanager
    def _reading(self, name: str) -> Iterator[Connection]:
        with self._connection(name) as conn, reading(conn):
            yield conn

    @contextmanager
    def _connection(self, name: str) -> Iterator[Connection]:
        url = self.databases[name]
        engine = open_engine(
            url,
            connect_timeout_seconds=self.connect_timeout_seconds,
            for_migrating=True,
        )
        try:
            with self._named(name), library_errors(shown_database(url)), engine.connect() as conn:
                yield conn
        finally:
            engine.dispose()

    @contextmanager
    def _named(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            error.add_note(f"in database {name} ({shown_database(self.databases[name])})")
            raise
