"""Stored query results that follow their tables exactly, refreshed by what has changed."""

from datapatterns.materialized_view.reports import (
    Difference,
    DifferenceKind,
    Freshness,
    RefreshReport,
)
from datapatterns.materialized_view.strategy import (
    Auto,
    Explanation,
    Full,
    Incremental,
    Maintain,
    Strategy,
)
from datapatterns.materialized_view.view import MaterializedView

__all__ = [
    "Auto",
    "Difference",
    "DifferenceKind",
    "Explanation",
    "Freshness",
    "Full",
    "Incremental",
    "Maintain",
    "MaterializedView",
    "RefreshReport",
    "Strategy",
]
