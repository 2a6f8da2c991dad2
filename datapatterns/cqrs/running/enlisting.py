"""Which of the declared versions a worker may run: they are registered, and their tables are."""

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, select

from datapatterns.cqrs.definition import AnyProjection, RedisProjection
from datapatterns.cqrs.running.registering import register_to_follow
from datapatterns.cqrs.running.sharing import Version
from datapatterns.cqrs.schema import projection_tables
from datapatterns.event_sourcing.store import EventStore
from datapatterns.transactions import reading, resuming


class Enlisted:
    """The declared versions, and which of them the database knows as they are declared.

    Attributes:
        versions: All that are declared.
        known: Those of which the worker may hold segments.
        errors: Why others cannot be registered.
    """

    def __init__(self, store: EventStore, declared: Sequence[type[AnyProjection]]) -> None:
        self._store = store
        self._checked: set[Version] = set()
        self.versions: Mapping[Version, type[AnyProjection]] = {
            (one.name, one.version): one for one in declared
        }
        self.known: frozenset[Version] = frozenset()
        self.errors: dict[Version, Exception] = {}

    def refresh(self, conn: Connection, *, without: frozenset[Version]) -> dict[Version, Exception]:
        """Find out anew which versions may run, and return why others newly cannot.

        One that has to be built first, while another version is read, is neither.

        Args:
            conn: A connection without a transaction.
            without: Which ones not to register now, for that has failed just before.
        """
        with reading(conn):
            there = self._statuses(conn)
        known, failed = set(), {}
        for version, projection in self.versions.items():
            if version not in there and _is_to_be_built(projection, there):
                continue
            if version not in self._checked and there.get(version, "live") == "live":
                if version in without:
                    continue
                error = self._error_of_registering(conn, projection)
                if error is not None:
                    self.errors[version] = failed[version] = error
                    continue
                self._checked.add(version)
            self.errors.pop(version, None)
            known.add(version)
        self.known = frozenset(known)
        return failed

    def _error_of_registering(
        self, conn: Connection, projection: type[AnyProjection]
    ) -> Exception | None:
        try:
            self._register(conn, projection)
        except Exception as error:
            if conn.invalidated:
                raise
            return error  # whatever is wrong with one must not stop others
        return None

    def _register(self, conn: Connection, projection: type[AnyProjection]) -> None:
        with resuming(conn, f"registering projection {projection.name}"):
            register_to_follow(conn, self._store, projection)

    def _statuses(self, conn: Connection) -> dict[Version, str]:
        projections = projection_tables(self._store.schema).projections.c
        rows = conn.execute(select(projections.name, projections.version, projections.status))
        return {(name, version): status for name, version, status in rows}


def _is_to_be_built(projection: type[AnyProjection], there: Mapping[Version, str]) -> bool:
    in_table = not issubclass(projection, RedisProjection)
    return in_table and any(name == projection.name for name, _ in there)
