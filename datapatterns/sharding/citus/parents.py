"""The order in which rows of a group's tables may come, as foreign keys want it."""

from collections.abc import Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from sqlalchemy import ARRAY, BigInteger, Connection, bindparam, text

from datapatterns.errors import MoveRefusedError
from datapatterns.sharding.moving.moved_table import MovedTable

_REFERENCES = text("""
SELECT o.conname AS name, o.conrelid::int8 AS child, o.confrelid::int8 AS parent,
    o.conrelid::regclass::text AS here, o.confrelid::regclass::text AS there,
    EXISTS (SELECT FROM pg_catalog.pg_index i
        WHERE i.indexrelid = o.conindid AND i.indisprimary) AS to_key
FROM pg_catalog.pg_constraint o
WHERE o.contype = 'f' AND o.conrelid::int8 = ANY (:tables) AND o.confrelid::int8 = ANY (:tables)
ORDER BY o.conname
""")


@dataclass(frozen=True, slots=True)
class Families:
    """Which table refers to which.

    Attributes:
        parents_first: The tables, each after those that it refers to.
        parents: Those that others refer to.
    """

    parents_first: tuple[int, ...]
    parents: frozenset[int]


def families(conn: Connection, tables: Sequence[MovedTable]) -> Families:
    """Return the order of tables of one server.

    Raises:
        MoveRefusedError: There is none: a table refers to itself, or tables to each other; or
            what is referred to may change in a row that stays.
    """
    oids = [table.oid for table in tables]
    found = conn.execute(_REFERENCES.bindparams(bindparam("tables", oids, ARRAY(BigInteger)))).all()
    order: TopologicalSorter[int] = TopologicalSorter(dict.fromkeys(oids, ()))
    for row in found:
        if row.child == row.parent:
            raise MoveRefusedError(
                f"foreign key {row.name}",
                f"{row.here} refers to itself, and the nodes of Citus check that while rows come"
                " in any order; drop it before the first bucket goes there",
            )
        if not row.to_key:
            raise MoveRefusedError(
                f"foreign key {row.name}",
                f"it refers to something else than the primary key of {row.there}, which may change"
                " while children are there; let it refer to that key, or drop it",
            )
        order.add(row.child, row.parent)
    try:
        return Families(tuple(order.static_order()), frozenset(row.parent for row in found))
    except CycleError as error:
        raise MoveRefusedError(
            "foreign keys of the group",
            "tables refer to each other in a circle, so no order of rows satisfies them; drop one",
        ) from error
