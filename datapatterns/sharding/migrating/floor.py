"""Refuse shards that are too old for the code, when it connects to them."""

from functools import cached_property
from typing import Any

from psycopg import Connection as DriverConnection
from psycopg import sql
from psycopg.errors import InvalidSchemaName, UndefinedTable

from datapatterns.errors import AlembicEnvironmentError, ShardBehindError
from datapatterns.sharding.migrating.environment import AlembicEnvironment, Revisions


class RevisionFloor:
    """The oldest revision that the code works with.

    A shard that was found to have it is not asked again by this process: one more question for the
    first connection to each, none for others. A revision that the code does not know is taken for
    a later one: while an application is deployed, its older instances go on.
    """

    def __init__(self, environment: AlembicEnvironment) -> None:
        self._environment = environment
        self._good: set[str] = set()

    def check(self, shard: str, connection: DriverConnection[Any]) -> None:
        """Refuse a shard that is below.

        Raises:
            AlembicEnvironmentError: The environment has no such revision.
            ShardBehindError: The shard does not have it.
        """
        needed = self._environment.min_revision
        if needed is None or shard in self._good:
            return
        found = self._heads(connection)
        revisions = self._revisions
        if not revisions.unknown(found):
            if not revisions.has(needed):
                raise AlembicEnvironmentError(f"min_revision {needed!r} is none of its revisions")
            if not revisions.resolved(needed) <= revisions.below(found):
                raise ShardBehindError(shard, found=tuple(sorted(found)), needed=needed)
        self._good.add(shard)

    @cached_property
    def _revisions(self) -> Revisions:
        return self._environment.revisions()

    def _heads(self, connection: DriverConnection[Any]) -> frozenset[str]:
        environment = self._environment
        named = [name for name in (environment.version_schema, environment.version_table) if name]
        question = sql.SQL("SELECT version_num FROM {}").format(sql.Identifier(*named))
        try:
            rows = connection.execute(question).fetchall()
        except (UndefinedTable, InvalidSchemaName):
            return frozenset()
        finally:
            connection.rollback()
        return frozenset(row[0] for row in rows)
