"""Stored query results that follow their tables exactly, refreshed by what has changed."""

from datapatterns.materialized_view.mapping import table_for
from datapatterns.materialized_view.policy import Daily, Every, RefreshPolicy
from datapatterns.materialized_view.reports import (
    Difference,
    DifferenceKind,
    Freshness,
    RefreshReport,
    ViewState,
    ViewStatus,
    ViewVerification,
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
from datapatterns.materialized_view.views import Views
from datapatterns.materialized_view.working import ViewWorkDone, ViewWorker

__all__ = [
    "Auto",
    "Daily",
    "Difference",
    "DifferenceKind",
    "Every",
    "Explanation",
    "Freshness",
    "Full",
    "Incremental",
    "Maintain",
    "MaterializedView",
    "RefreshPolicy",
    "RefreshReport",
    "Strategy",
    "ViewState",
    "ViewStatus",
    "ViewVerification",
    "ViewWorkDone",
    "ViewWorker",
    "Views",
    "table_for",
]
