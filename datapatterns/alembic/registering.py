"""Which views belong to the tables of a MetaData."""

from collections.abc import Iterable, Sequence
from typing import Final

from sqlalchemy import MetaData

from datapatterns.alembic.register import Register
from datapatterns.materialized_view import MaterializedView, Views
from datapatterns.sql.metadata import DEFAULT_SCHEMA

_REGISTER: Final = Register("datapatterns.views", Views)


def register_views(
    metadata: MetaData,
    views: Views | Iterable[MaterializedView],
    *,
    schema: str = DEFAULT_SCHEMA,
) -> None:
    """Let autogenerate keep these views of the tables in ``metadata``, and no others.

    To be called once for each schema of the library that holds views, also with an empty list:
    views of the schema that are in the database and not here are going to be dropped.

    Args:
        metadata: What ``env.py`` gives Alembic as ``target_metadata``, or one of several.
        views: ``layer.views``, or the views one by one.
        schema: Where the library's tables live; ``layer.views`` know it themselves.

    Raises:
        ViewCycleError: Some are built upon each other in a circle.
        ViewUndeclaredError: Two have one name, or one lives in another schema.
    """
    _REGISTER.add(metadata, views, schema)


def registered_views(metadata: MetaData | Sequence[MetaData] | None) -> list[Views]:
    """Return the views of each schema that were registered, those of one schema together.

    Raises:
        ViewUndeclaredError: Two of one schema have one name.
    """
    return _REGISTER.of(metadata)
