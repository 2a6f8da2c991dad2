"""How large the tables of a view and their logs are, by what the server knows without counting."""

from typing import Any

from psycopg import sql
from sqlalchemy import (
    ColumnElement,
    Integer,
    Numeric,
    ScalarSelect,
    Text,
    case,
    cast,
    column,
    func,
    select,
)
from sqlalchemy import table as relation
from sqlalchemy.dialects.postgresql import JSONB, REGCLASS

from datapatterns.change_log.capture_names import batches_name, rows_name

_classes = relation("pg_class", column("oid"), column("reltuples"), schema="pg_catalog")

_PAGES_TO_A_PAGE_OF_BATCHES = 400


def rows_of(sources: ColumnElement[Any]) -> ScalarSelect[Any]:
    """Return an expression for how many rows the tables have together, None if one is unknown.

    That is so until somebody has analysed it; partitioned ones have a number of their own.

    Args:
        sources: What the catalogue of views has: an object by the tables' names in SQL.
    """
    names = func.jsonb_object_keys(sources, type_=Text).column_valued("table_name")
    known = func.min(_classes.c.reltuples) >= 0
    total = case((known, func.sum(_classes.c.reltuples)))
    joined = _classes.c.oid == func.to_regclass(names, type_=REGCLASS)
    return select(total).select_from(_classes).where(joined).scalar_subquery()


def log_pages_of(sources: ColumnElement[Any], *, schema: str) -> ScalarSelect[Any]:
    """Return an expression for how many pages the longest log has, or would have without batches.

    That is at the most: a page has room for some eighty batches, and they for a thousand changes.

    Args:
        sources: As for `rows_of`; each with the name of its ``log``.
        schema: Where logs are.
    """
    each = func.jsonb_each(sources).table_valued(column("key", Text), column("value", JSONB))
    prefix = sql.Identifier(schema).as_string(None) + "."
    names = (func.quote_ident(part(each.c.value["log"].astext)) for part in (_rows, _batches))
    rows, batches = (
        func.coalesce(func.pg_relation_size(func.to_regclass(prefix + name), type_=Numeric), 0)
        for name in names
    )
    size = func.max(rows + _PAGES_TO_A_PAGE_OF_BATCHES * batches)
    page = cast(func.current_setting("block_size"), Integer)
    return select(cast(func.div(size, page), Integer)).scalar_subquery()


def _rows(log_name: ColumnElement[str]) -> ColumnElement[str]:
    return func.replace(log_name, "change_log_", rows_name("change_log_"), type_=Text)


def _batches(log_name: ColumnElement[str]) -> ColumnElement[str]:
    return func.replace(log_name, "change_log_", batches_name("change_log_"), type_=Text)
