"""Columns as they can be compared and hashed."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import JSON, ColumnElement, cast
from sqlalchemy.dialects.postgresql import JSONB

from datapatterns.cqrs.tables.row_statements import undecorated


def comparable(columns: Sequence[ColumnElement[Any]]) -> list[ColumnElement[Any]]:
    """Return ``columns``, those of type json as jsonb: json has no equality."""
    return [cast(c, JSONB) if _is_json(c) else c for c in columns]


def _is_json(column: ColumnElement[Any]) -> bool:
    type_ = undecorated(column.type)
    return isinstance(type_, JSON) and not isinstance(type_, JSONB)
