"""In which tables a version of a projection has its rows: the live one in those of its classes."""

from hashlib import sha256
from types import MappingProxyType
from typing import Final

from sqlalchemy import Column, MetaData, Table

from datapatterns.cqrs.definition import TableProjection
from datapatterns.cqrs.tables.read_model import ReadModels, read_models_of
from datapatterns.sql.metadata import declared_once

_IDENTIFIER_BYTES_MAX: Final = 63
_HASH_CHARS: Final = 8


def read_models_for(projection: type[TableProjection], status: str) -> ReadModels:
    """Return the read models of a version that has this status."""
    return read_models_of(projection) if status == "live" else shadows_of(projection)


@declared_once
def shadows_of(projection: type[TableProjection]) -> ReadModels:
    """Return the read models of this version while it is not the live one.

    Their tables have the columns that are folded, and other names.
    """
    shadows = {}
    for into, model in read_models_of(projection).items():
        columns = [
            Column(c.name, c.type, primary_key=c.primary_key, autoincrement=False)
            for c in model.columns
        ]
        name = shadow_name(model.table.name, projection.version)
        table = Table(name, MetaData(), *columns, schema=model.table.schema)
        shadows[into] = model.in_table(table)
    return MappingProxyType(shadows)


def shadow_name(table: str, version: int) -> str:
    """Return what the table of a version is called while it is not live.

    >>> shadow_name("product_sales", 2)
    'product_sales__v2'

    PostgreSQL cuts names of more than 63 bytes; here a digest keeps them apart:

    >>> len(shadow_name("x" * 60, 2)), shadow_name("x" * 60, 2)[-13:]
    (63, 'cc51a2d7__v2')
    """
    suffix = f"__v{version}"
    whole = table + suffix
    if len(whole.encode()) <= _IDENTIFIER_BYTES_MAX:
        return whole
    digest = sha256(table.encode()).hexdigest()[:_HASH_CHARS]
    room = _IDENTIFIER_BYTES_MAX - len(suffix) - _HASH_CHARS - 1
    return f"{table.encode()[:room].decode(errors='ignore')}_{digest}{suffix}"
