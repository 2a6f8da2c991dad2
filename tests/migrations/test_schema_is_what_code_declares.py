"""What the code declares is what the migrations make, column by column."""

import re
from importlib import import_module
from inspect import signature
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine

import datapatterns
from datapatterns.sql.metadata import DEFAULT_SCHEMA, library_metadata
from datapatterns.sql.migration_status import migration_table

# Indexes, keys and checks are written down once, in the migrations.
KINDS = {"add_table", "add_column", "remove_column", "modify_type", "modify_nullable"}
PATTERNS = sorted(
    path.parent.name for path in Path(datapatterns.__file__).parent.glob("*/schema.py")
)


def declare_everything() -> None:
    """Call what each ``schema.py`` builds its tables with."""
    migration_table(DEFAULT_SCHEMA)
    for pattern in PATTERNS:
        module = import_module(f"datapatterns.{pattern}.schema")
        for name, build in vars(module).items():
            if hasattr(build, "__wrapped__") and list(signature(build).parameters) == ["schema"]:
                assert build(DEFAULT_SCHEMA) is not None, name


@pytest.mark.postgres
@pytest.mark.filterwarnings("ignore:Did not recognize type:sqlalchemy.exc.SAWarning")
def test_the_migrated_schema_is_what_the_code_declares(engine: Engine) -> None:
    declare_everything()

    with engine.connect() as conn:
        context = MigrationContext.configure(
            conn,
            opts={
                "include_schemas": True,
                "include_name": lambda name, kind, _: kind != "schema" or name == DEFAULT_SCHEMA,
                "version_table": "library_version",
                "version_table_schema": DEFAULT_SCHEMA,
                "compare_server_default": False,
            },
        )
        differences = compare_metadata(context, library_metadata(DEFAULT_SCHEMA))

    assert [describe(found) for found in differences if kind(found) in KINDS] == []


def kind(difference: object) -> str:
    """Return what differs; changes of one column come as a list."""
    first = difference[0] if isinstance(difference, list) else difference
    assert isinstance(first, tuple)
    return str(first[0])


def describe(difference: object) -> str:
    return re.sub(r"\s+", " ", str(difference))[:300]
