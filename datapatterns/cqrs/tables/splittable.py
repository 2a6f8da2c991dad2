"""Whether workers may have segments of a read model: its rows must not depend on each other."""

from typing import Any, Final

from sqlalchemy import Column, Connection, Table, column, func, inspect, literal, select, table
from sqlalchemy.dialects.postgresql import OID, REGCLASS

from datapatterns.cqrs.definition import AnyProjection, Projection, TableProjection
from datapatterns.cqrs.running.segments import can_be_told
from datapatterns.cqrs.tables.read_model import read_models_of
from datapatterns.cqrs.tables.targets import quoted_table
from datapatterns.errors import SegmentError, SegmentKeyError

_FOLDED: Final = ("citext", "bpchar")
"""Types of texts that are equal to the database although they are not to Python."""

_indexes = table(
    "pg_index",
    column("indrelid", OID),
    column("indkey"),
    column("indisprimary"),
    schema="pg_catalog",
)
_attributes = table(
    "pg_attribute",
    column("attrelid", OID),
    column("attnum"),
    column("attname"),
    column("atttypid", OID),
    column("attcollation", OID),
    schema="pg_catalog",
)
_types = table("pg_type", column("oid", OID), column("typname"), schema="pg_catalog")
_collations = table(
    "pg_collation", column("oid", OID), column("collisdeterministic"), schema="pg_catalog"
)


def refuse_unsplittable(conn: Connection, projection: type[AnyProjection]) -> None:
    """Refuse to split what could then be wrong.

    Raises:
        SegmentError: It is in Redis, its events must be applied in one order, or its tables hold
            rows to each other.
        SegmentKeyError: Its keys do not look the same in every process.
    """
    if not issubclass(projection, TableProjection):
        raise SegmentError(
            projection.name,
            "a read model in Redis has one segment; to spread work, declare several projections",
        )
    if not projection.is_splittable:
        raise SegmentError(
            projection.name,
            "its statements may depend on the order of events of different streams; if they only"
            " add up, declare additive=True",
        )
    if not issubclass(projection, Projection):
        return  # it is split by streams, and all upserts wait for each other's rows
    models = read_models_of(projection)
    ours = {model.table.name for model in models.values()}
    for model in models.values():
        for key in model.columns[: model.key_length]:
            _refuse_key(projection, key)
        _refuse_folded_keys(conn, projection, model.table)
        _refuse_ties(conn, projection, model.table, ours)


def _refuse_key(projection: type[Projection], key: Column[Any]) -> None:
    try:
        kind = key.type.python_type
    except NotImplementedError:  # what the keys are, the first event shows
        return
    if not can_be_told(kind):
        raise SegmentKeyError(f"{kind.__name__} ({projection.name}.{key.name})")


def _refuse_folded_keys(conn: Connection, projection: type[Projection], of: Table) -> None:
    relation = literal(quoted_table(conn, of).replace("%%", "%")).cast(REGCLASS).cast(OID)
    folded = conn.scalar(
        select(_attributes.c.attname)
        .join_from(_indexes, _attributes, _attributes.c.attrelid == _indexes.c.indrelid)
        .join(_types, _types.c.oid == _attributes.c.atttypid)
        .outerjoin(_collations, _collations.c.oid == _attributes.c.attcollation)
        .where(
            _indexes.c.indrelid == relation,
            _indexes.c.indisprimary,
            _attributes.c.attnum == func.any(_indexes.c.indkey),
            _types.c.typname.in_(_FOLDED) | ~func.coalesce(_collations.c.collisdeterministic, True),
        )
        .limit(1)
    )
    if folded is not None:
        raise SegmentError(
            projection.name,
            f"keys of {of.name}.{folded} are equal to the database that are not to Python, so two"
            " segments could write one row; give it a type or collation that tells them apart",
        )


def _refuse_ties(conn: Connection, projection: type[Projection], of: Table, ours: set[str]) -> None:
    found = inspect(conn)
    ties = [
        f"the foreign key {one['name']} refers to another of its tables"
        for one in found.get_foreign_keys(of.name, of.schema)
        if one["referred_table"] in ours
    ]
    ties += [
        f"{one['name']} makes rows unique by more than their key"
        for one in found.get_indexes(of.name, of.schema)
        if one["unique"]
    ]
    if ties:
        raise SegmentError(
            projection.name,
            f"{ties[0]} of {of.name}, and segments are not at the same event; drop it, or leave the"
            " projection whole",
        )
