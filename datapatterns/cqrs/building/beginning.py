"""Begin and finish the build of a version in tables beside the live ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from psycopg import sql
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from datapatterns.cqrs.building.attachments import execute_all
from datapatterns.cqrs.building.further_indexes import (
    add_further_indexes,
    add_further_statistics,
    set_replica_identity,
)
from datapatterns.cqrs.building.likeness import policies, resemble, resemble_while_empty
from datapatterns.cqrs.building.names import default_name, numbered
from datapatterns.cqrs.building.relations import (
    TABLE,
    Relation,
    drop_tables,
    find_table,
    find_target,
    parts_of,
    rename_constraints,
    taken_names,
)
from datapatterns.cqrs.building.shadow_tables import ShadowTable, foreign_keys, shadow_tables
from datapatterns.cqrs.building.version_records import (
    Shadow,
    VersionRecord,
    begin_segments,
    hold_versions,
    read_segments,
    read_versions,
    write_version,
)
from datapatterns.cqrs.definition import TableProjection
from datapatterns.cqrs.running.registering import register_build
from datapatterns.cqrs.schema import ProjectionTables, projection_tables
from datapatterns.cqrs.tables.projecting import is_of_data, message_of
from datapatterns.cqrs.tables.targets import resolve_target
from datapatterns.errors import LeaseLostError, ProjectionDefinitionError
from datapatterns.event_sourcing.events import Position
from datapatterns.sql.composing import execute
from datapatterns.sql.long_statements import allow_long_statements


@dataclass(frozen=True, slots=True)
class ShadowBuild:
    """The tables of one version while it is built."""

    schema: str
    projection: type[TableProjection]

    def begin(self, conn: Connection, *, segments: int) -> UUID | None:
        """Make empty tables and segments at the beginning of the log, in the place of any before.

        Returns:
            The build; None if there is no live version to build it beside, or this is it.

        Raises:
            ProjectionDefinitionError: A table is none that could be swapped, or the name of one
                that is to be made is taken.
        """
        name, version = self.projection.name, self.projection.version
        hold_versions(conn, self.schema, name, [version])
        register_build(conn, self._tables, self.projection)
        known = read_versions(conn, self._tables, name)
        mine = known[version]
        others = [record for record in known.values() if record.status == "live"]
        if mine.status == "live" or not others:
            return None
        # Tables before rows of segments, as in a page: whoever writes one is waited for here.
        drop_shadows(conn, mine)
        shadows = {}
        for shadow in shadow_tables(self.projection):
            target = self._target(conn, shadow)
            shadows[target] = self._create(conn, shadow, target)
        write_version(
            conn, self._tables, mine, status="building", targets=sorted(shadows), shadows=shadows
        )
        return begin_segments(conn, self._tables, name, version, count=segments)

    def add_keys(self, conn: Connection) -> None:
        """Give the tables their primary keys, uniques and exclusions, unless they have them."""
        allow_long_statements(conn)
        for shadow in shadow_tables(self.projection):
            table = self._relation(conn, shadow)
            # Two builders may need them: the second waits, and finds them.
            lock = sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(table.identifier)
            execute(conn, lock)
            if not parts_of(conn, table) or not self._has_key(conn, shadow, table):
                shadow.add_keys(conn)

    def finish(self, conn: Connection, build: UUID, target: Position) -> None:
        """Add keys, indexes and foreign keys, and let this version follow the log.

        Raises:
            LeaseLostError: Somebody builds it anew.
            ProjectionDefinitionError: The rows are not what the tables' constraints allow.
        """
        hold_versions(conn, self.schema, self.projection.name, [self.projection.version])
        self._refuse_other_build(conn, build, target)
        allow_long_statements(conn)
        shadows = shadow_tables(self.projection)
        written: dict[str, Shadow] = {}
        try:
            self.add_keys(conn)
            for shadow in shadows:
                shadow.add_indexes(conn)
                written[self._target(conn, shadow)] = self._finish_table(conn, shadow)
            written = self._with_free_names(conn, written)
            for key in foreign_keys(shadows):
                conn.execute(key)
        except DBAPIError as error:
            if is_of_data(error):
                raise self._refused(error) from error
            raise
        for shadow in shadows:
            identifier = self._relation(conn, shadow).identifier
            # Without figures, the first queries after the swap would be planned for an empty table.
            execute(conn, sql.SQL("ANALYZE {}").format(identifier))
        mine = read_versions(conn, self._tables, self.projection.name)[self.projection.version]
        write_version(
            conn, self._tables, mine, status="ready", targets=mine.targets, shadows=written
        )

    def _create(self, conn: Connection, shadow: ShadowTable, target: str) -> Shadow:
        live = find_target(conn, target)
        assert live is not None
        self._refuse_unswappable(live)
        if find_table(conn, live.schema, str(shadow.table.name)) is not None:
            raise ProjectionDefinitionError(
                self.projection.name,
                f"{shadow.table.name}, in which this version is to be built, is there already and"
                " not known as its table; rename it",
            )
        conn.execute(shadow.creation)
        table = self._relation(conn, shadow)
        for statement in rename_constraints(conn, table, live.name):
            execute(conn, statement)
        resemble_while_empty(conn, live, table)
        resemble(conn, live, table)
        copy_policies(conn, live, table)
        return Shadow(table.name, dict(shadow.names))

    def _finish_table(self, conn: Connection, shadow: ShadowTable) -> Shadow:
        live = find_target(conn, self._target(conn, shadow))
        table = self._relation(conn, shadow)
        assert live is not None
        names = dict(shadow.names)
        for part in parts_of(conn, table):
            if part.owned_column is not None:
                names[part.name] = default_name(live.name, part.owned_column, "seq")
        names |= add_further_indexes(conn, live, table, self.projection.version)
        names |= add_further_statistics(conn, live, table, self.projection.version)
        set_replica_identity(conn, live, table, names)
        return Shadow(table.name, names)

    def _with_free_names(
        self, conn: Connection, written: Mapping[str, Shadow]
    ) -> dict[str, Shadow]:
        # What nobody has named is numbered if something else is called so, as the server does it.
        lives = [live for target in written if (live := find_target(conn, target)) is not None]
        put_aside = {
            (live.schema, name)
            for live in lives
            for name in [live.name, *(part.name for part in parts_of(conn, live))]
        }
        chosen: set[tuple[str, str]] = set()
        free = {}
        for live, (target, shadow) in zip(lives, written.items(), strict=True):
            names = {}
            for called, wanted in shadow.names.items():
                name, number = wanted, 0
                while (live.schema, name) in chosen or (
                    (live.schema, name) not in put_aside and taken_names(conn, live.schema, [name])
                ):
                    number += 1
                    name = numbered(wanted, number)
                chosen.add((live.schema, name))
                names[called] = name
            free[target] = Shadow(shadow.table, names)
        return free

    def _has_key(self, conn: Connection, shadow: ShadowTable, table: Relation) -> bool:
        present = {part.name for part in parts_of(conn, table)}
        return bool(present & set(shadow.names))

    def _target(self, conn: Connection, shadow: ShadowTable) -> str:
        return resolve_target(conn, shadow.live, self.projection.name)

    def _relation(self, conn: Connection, shadow: ShadowTable) -> Relation:
        live = find_target(conn, self._target(conn, shadow))
        assert live is not None
        table = find_table(conn, live.schema, str(shadow.table.name))
        if table is None:
            raise LeaseLostError(f"the build of projection {self.projection.name}", epoch=0)
        return table

    def _refuse_unswappable(self, live: Relation) -> None:
        if live.kind != TABLE or live.in_hierarchy or live.persistence == "t":
            raise ProjectionDefinitionError(
                self.projection.name,
                f"{live.schema}.{live.name} is partitioned, inherits, or is no plain table, so no"
                " other can take its place; map a plain table, or keep the version and rebuild it",
            )

    def _refuse_other_build(self, conn: Connection, build: UUID, target: Position) -> None:
        name, version = self.projection.name, self.projection.version
        segments = read_segments(conn, self._tables, name, version)
        if not segments or any(one.build != build or one.position < target for one in segments):
            raise LeaseLostError(f"the build of projection {name}", epoch=0)

    def _refused(self, error: DBAPIError) -> ProjectionDefinitionError:
        return ProjectionDefinitionError(
            self.projection.name,
            f"its table refuses what the log gives: {message_of(error)}; change one of them, then"
            " rebuild",
        )

    @property
    def _tables(self) -> ProjectionTables:
        return projection_tables(self.schema)


def drop_shadows(conn: Connection, record: VersionRecord) -> list[str]:
    """Drop the tables of a version that is not live; return their names."""
    tables = shadow_relations(conn, record)
    # Together, or one could not be dropped because another refers to it.
    if tables:
        execute(conn, drop_tables(tables.values()))
    return [f"{table.schema}.{table.name}" for table in tables.values()]


def shadow_relations(conn: Connection, record: VersionRecord) -> Mapping[str, Relation]:
    """Return the tables of a version that is not live, by the live ones; those that exist."""
    found = {}
    for target, shadow in record.shadows.items():
        live = find_target(conn, target)
        table = None if live is None else find_table(conn, live.schema, shadow.table)
        if table is not None:
            found[target] = table
    return found


def copy_policies(conn: Connection, live: Relation, table: Relation) -> None:
    """Let a table that is not live be read by nobody who could not read the live one.

    A policy that cannot be written for it (a subquery in it names the live table) is left out:
    then its rows are kept from more people than those of the live table, not from fewer.
    """
    for policy in policies(conn, live, table):
        try:
            with conn.begin_nested():
                execute_all(conn, [policy])
        except DBAPIError as error:
            if error.connection_invalidated:
                raise


def segment_count(workers: int) -> int:
    """Return how many segments so many workers need: each at least one, a power of two.

    >>> [segment_count(workers) for workers in (1, 2, 3, 8)]
    [1, 2, 4, 8]
    """
    return 1 << max(0, workers - 1).bit_length()
