"""Materialized views and index tables in migrations, also written by autogenerate."""

from datapatterns.alembic.indexes.operations import CreateIndexTableOp, DropIndexTableOp
from datapatterns.alembic.indexes.registering import register_indexes
from datapatterns.alembic.operations import (
    CreateMaterializedViewOp,
    DropMaterializedViewOp,
    ReplaceMaterializedViewOp,
)
from datapatterns.alembic.registering import register_views
from datapatterns.index_table.blueprint import IndexBlueprint
from datapatterns.materialized_view.blueprint import Blueprint, Need, Requirement, Source
from datapatterns.materialized_view.strategy import Strategy

__all__ = [
    "Blueprint",
    "CreateIndexTableOp",
    "CreateMaterializedViewOp",
    "DropIndexTableOp",
    "DropMaterializedViewOp",
    "IndexBlueprint",
    "Need",
    "ReplaceMaterializedViewOp",
    "Requirement",
    "Source",
    "Strategy",
    "register_indexes",
    "register_views",
]
