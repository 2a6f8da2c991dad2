"""The short transaction in which one version's tables take the places of another's."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from psycopg import sql
from sqlalchemy import Connection, delete, text

from datapatterns.cqrs.building.attachments import detach, execute_all
from datapatterns.cqrs.building.beginning import shadow_relations
from datapatterns.cqrs.building.dependants import find_dependants
from datapatterns.cqrs.building.likeness import policies_taken, resemble
from datapatterns.cqrs.building.relations import (
    Relation,
    find_target,
    lock_tables,
    parts_of,
    rename_table,
    taken_names,
    users_of,
)
from datapatterns.cqrs.building.version_records import (
    Shadow,
    VersionRecord,
    fence,
    hold_versions,
    read_versions,
    write_version,
)
from datapatterns.cqrs.running.parking import pass_on_owed
from datapatterns.cqrs.running.registering import own_tables
from datapatterns.cqrs.schema import ProjectionTables, projection_tables
from datapatterns.cqrs.tables.versions import shadow_name
from datapatterns.errors import PromotionRefusedError, ReadModelInUseError
from datapatterns.failpoints import failpoint
from datapatterns.sql.composing import execute

FOLLOWING: Final = ("ready", "standby")
"""In which states a version is whole, follows the log, and can take the place of the live one."""

_LOCK_MILLISECONDS_MAX: Final = 2**31 - 1
_LOCK_TIMEOUT: Final = text("SELECT set_config('lock_timeout', :limit, true)")


class MovedOnError(Exception):
    """The live version shows more than the one that is to take its place; try again."""


class Places(NamedTuple):
    """The tables that are swapped.

    Attributes:
        live: By the name of the live table.
        fresh: Those that take their place, by the same.
    """

    live: Mapping[str, Relation]
    fresh: Mapping[str, Relation]


@dataclass(frozen=True, slots=True)
class Swap:
    """Puts one version in the place of another.

    Attributes:
        exact: Both must stand at one position, or a message would be sent twice or never.
        older: The one that takes the place may show less than has been seen.
        lock_seconds: How long all readers of a table are made to wait at most for those that hold
            the swap up.
    """

    schema: str
    old: VersionRecord
    new: VersionRecord
    exact: bool
    older: bool
    lock_seconds: float

    def check(self, conn: Connection) -> None:
        """Find out whether it could be done, as far as that can be told without any lock.

        Raises:
            PromotionRefusedError: Names are taken, or tables of the live version would be left.
            ReadModelInUseError: Something else is bound to a table.
        """
        places = self._places(conn)
        self._refuse_dependants(conn, places)
        for target, live in places.live.items():
            aside = shadow_name(live.name, self.old.version)
            names = {shadow_name(part.name, self.old.version) for part in parts_of(conn, live)}
            if taken := taken_names(conn, live.schema, [aside, *names]):
                raise PromotionRefusedError(
                    self.new.name,
                    self.new.version,
                    f"{', '.join(taken)} is there already, and {target} is to be put aside under"
                    " that name; rename it",
                )
        self._refuse_taken(conn, places)

    def users(self, conn: Connection) -> list[int]:
        """Return the sessions that have to be waited for."""
        places = self._places(conn)
        return users_of(conn, [*places.live.values(), *places.fresh.values()])

    def run(self, conn: Connection) -> None:
        """Swap, in the caller's transaction, which must end at once.

        Raises:
            DBAPIError: A lock was not to be had in time.
            MovedOnError: The live version has moved on meanwhile.
            PromotionRefusedError: The versions are not what they were.
            ReadModelInUseError: Something else is bound to a table.
        """
        milliseconds = min(1_000 * self.lock_seconds, _LOCK_MILLISECONDS_MAX)
        limit = max(1, round(milliseconds / (len(self.new.targets) or 1)))
        conn.execute(_LOCK_TIMEOUT, {"limit": f"{limit}ms"})
        hold_versions(conn, self.schema, self.new.name, [self.old.version, self.new.version])
        self._refuse_changed(conn)
        places = self._places(conn)
        # As long as nobody reads them, what takes time is done to the new tables.
        if places.fresh:
            execute(conn, lock_tables(places.fresh.values()))
        for target, table in places.fresh.items():
            resemble(conn, places.live[target], table)
            removals = policies_taken(conn, table)
            if removals:
                execute_all(conn, removals)
        aside, renames = self._renames(conn, places)
        # From here on readers wait. A page locks tables first and its segment's row last, so this
        # does, too: the other way round the two would wait for each other.
        if places.live:
            execute(conn, lock_tables(places.live.values()))
        failpoint("promote.locked")
        self._fence(conn)
        self._refuse_dependants(conn, places)
        additions = [statement for live in places.live.values() for statement in detach(conn, live)]
        if renames:
            execute(conn, sql.SQL("; ").join(renames))
        if additions:
            execute_all(conn, additions)
        self._write(conn, aside)
        failpoint("promote.swapped")

    def _fence(self, conn: Connection) -> None:
        positions = fence(conn, self._tables, self.new.name, [self.old.version, self.new.version])
        old, new = positions[self.old.version], positions[self.new.version]
        if self.older:
            return
        # Again, under the locks: a barrier expires, and whoever promotes may have been paused.
        if min(new) < max(old) or (self.exact and len({*old, *new}) > 1):
            raise MovedOnError

    def _renames(
        self, conn: Connection, places: Places
    ) -> tuple[dict[str, Shadow], list[sql.Composed]]:
        aside, first, then = {}, [], []
        for target, live in places.live.items():
            parts = parts_of(conn, live)
            names = {part.name: shadow_name(part.name, self.old.version) for part in parts}
            table = shadow_name(live.name, self.old.version)
            aside[target] = Shadow(table, {called: name for name, called in names.items()})
            first += rename_table(live, table, parts, names)
            if target in places.fresh:
                fresh = places.fresh[target]
                names = dict(self.new.shadows[target].names)
                then += rename_table(fresh, live.name, parts_of(conn, fresh), names)
        return aside, first + then

    def _write(self, conn: Connection, aside: Mapping[str, Shadow]) -> None:
        tables = self._tables
        # The old one first: two versions are never live, not even within this transaction.
        write_version(
            conn,
            tables,
            self.old,
            status="standby",
            targets=self.old.targets,
            shadows=aside if self.old.kind == "table" else {},
        )
        # Messages of what waits in both versions are not sent yet.
        pass_on_owed(conn, tables, self.new.name, version=self.old.version, heir=self.new.version)
        write_version(conn, tables, self.new, status="live", targets=self.new.targets, shadows={})
        owned = tables.owned
        conn.execute(
            delete(owned).where(
                owned.c.name == self.new.name, owned.c.target.not_in(self.new.targets)
            )
        )
        own_tables(conn, tables, self.new.name, list(self.new.targets))

    def _places(self, conn: Connection) -> Places:
        fresh = shadow_relations(conn, self.new)
        if left := sorted(set(self.old.targets) - set(fresh)) if self.new.kind == "table" else []:
            raise PromotionRefusedError(
                self.new.name,
                self.new.version,
                f"it has no table for {', '.join(left)}, so its readers would find nothing; give"
                " it another name, as it is another read model",
            )
        live = {target: find_target(conn, target) for target in sorted(fresh)}
        return Places({target: table for target, table in live.items() if table is not None}, fresh)

    def _refuse_taken(self, conn: Connection, places: Places) -> None:
        put_aside = {
            (live.schema, part.name)
            for live in places.live.values()
            for part in parts_of(conn, live)
        }
        for target, live in places.live.items():
            wanted = self.new.shadows[target].names.values()
            others = [name for name in wanted if (live.schema, name) not in put_aside]
            if taken := taken_names(conn, live.schema, others):
                raise PromotionRefusedError(
                    self.new.name,
                    self.new.version,
                    f"{', '.join(taken)} is there already, and what belongs to {target} is to be"
                    " called so; rename it",
                )

    def _refuse_changed(self, conn: Connection) -> None:
        now = read_versions(conn, self._tables, self.new.name, hold=True)
        old, new = now.get(self.old.version), now.get(self.new.version)
        if old != self.old or new != self.new:
            raise PromotionRefusedError(
                self.new.name,
                self.new.version,
                "somebody else has built, promoted or retired versions meanwhile; look at the"
                " status and try again",
            )

    def _refuse_dependants(self, conn: Connection, places: Places) -> None:
        tables = list(places.live.values())
        found: Iterable[str] = (
            find_dependants(conn, tables, library_schema=self.schema) if tables else []
        )
        if dependants := list(found):
            raise ReadModelInUseError(self.new.name, dependants)

    @property
    def _tables(self) -> ProjectionTables:
        return projection_tables(self.schema)
