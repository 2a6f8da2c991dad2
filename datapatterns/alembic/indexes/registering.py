"""Which index tables belong to the tables of a MetaData."""

from collections.abc import Iterable, Sequence
from typing import Final

from sqlalchemy import MetaData

from datapatterns.alembic.register import Register
from datapatterns.index_table import Indexes, IndexTable
from datapatterns.sql.metadata import DEFAULT_SCHEMA

_REGISTER: Final = Register("datapatterns.indexes", Indexes)


def register_indexes(
    metadata: MetaData,
    indexes: Indexes | Iterable[IndexTable],
    *,
    schema: str = DEFAULT_SCHEMA,
) -> None:
    """Let autogenerate keep these index tables of the tables in ``metadata``, and no others.

    To be called once for each schema of the library that holds some, also with an empty list:
    those of the schema that are in the database and not here are going to be dropped.

    Args:
        metadata: What ``env.py`` gives Alembic as ``target_metadata``, or one of several.
        indexes: ``layer.indexes``, or the index tables one by one.
        schema: Where the library's tables live; ``layer.indexes`` know it themselves.

    Raises:
        IndexUndeclaredError: Two have one name, or one lives in another schema.
    """
    _REGISTER.add(metadata, indexes, schema)


def registered_indexes(metadata: MetaData | Sequence[MetaData] | None) -> list[Indexes]:
    """Return the index tables of each schema that were registered, those of one schema together.

    Raises:
        IndexUndeclaredError: Two of one schema have one name.
    """
    return _REGISTER.of(metadata)
