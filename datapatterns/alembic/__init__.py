"""Materialized views in migrations: operations, and what autogenerate needs to write them."""

from datapatterns.alembic.operations import (
    CreateMaterializedViewOp,
    DropMaterializedViewOp,
    ReplaceMaterializedViewOp,
)
from datapatterns.alembic.registering import register_views
from datapatterns.materialized_view.blueprint import Blueprint, Need, Requirement, Source
from datapatterns.materialized_view.strategy import Strategy

__all__ = [
    "Blueprint",
    "CreateMaterializedViewOp",
    "DropMaterializedViewOp",
    "Need",
    "ReplaceMaterializedViewOp",
    "Requirement",
    "Source",
    "Strategy",
    "register_views",
]
