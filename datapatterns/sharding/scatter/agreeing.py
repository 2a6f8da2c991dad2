"""Whether the shards have one idea of how a language orders its text."""

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Connection, String, text
from sqlalchemy.sql import visitors

from datapatterns.errors import UnmergeableQueryError
from datapatterns.sharding.scatter.scatter_plan import ScatterPlan

# Sorted by another release of its library, an index of text is another one, too.
_ORDER_OF_TEXT: Final = text("""
SELECT ARRAY[
    d.datcollate, d.datctype, d.datlocprovider::text, d.locale,
    pg_catalog.pg_database_collation_actual_version(d.oid),
    (SELECT pg_catalog.max(pg_catalog.pg_collation_actual_version(c.oid))
     FROM pg_catalog.pg_collation c WHERE c.collname IN ('und-x-icu', 'unicode', 'en_US.utf8'))
]
FROM (
    SELECT oid, datcollate, datctype, datlocprovider, datname,
           coalesce(names ->> 'datlocale', names ->> 'daticulocale') AS locale
    FROM (SELECT b.*, pg_catalog.to_jsonb(b) AS names FROM pg_catalog.pg_database b) AS b
) AS d
WHERE d.datname = pg_catalog.current_database()
""")


class TextOrder:
    """Remembers how shards order text; a database does not change that while it is in use."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Any, ...]] = {}

    def require_one(self, connections: Mapping[str, Connection]) -> None:
        """Refuse to merge text in a language's order in which the shards differ.

        Costs a round trip to each shard that was not asked before.

        Raises:
            UnmergeableQueryError: They differ.
        """
        for shard_id, conn in connections.items():
            if shard_id not in self._known:
                self._known[shard_id] = tuple(conn.scalars(_ORDER_OF_TEXT).one())
        if len({self._known[shard_id] for shard_id in connections}) > 1:
            raise UnmergeableQueryError(
                "text in a language's order, which is not the same on all shards,",
                'give their databases one collation of one release, or order by COLLATE "C"',
            )


def compares_text(plan: ScatterPlan) -> bool:
    """Return whether PostgreSQL is to compare text for ``plan``."""
    ranked = any(isinstance(each.type, String) for each in plan.ranked)
    if ranked or plan.combined is None:
        return ranked
    return any(
        isinstance(getattr(part, "type", None), String) for part in visitors.iterate(plan.combined)
    )
