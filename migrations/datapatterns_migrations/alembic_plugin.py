"""Alembic's plugin: autogenerate compares the declared views and index tables with the database.

Alembic loads it whenever it is imported, also for environments that never name it. So it imports
nothing of ours before something is compared.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alembic.runtime.plugins import Plugin
    from alembic.util import PriorityDispatchResult


def setup(plugin: "Plugin") -> None:
    """Let ``autogenerate_plugins=["alembic.autogenerate.*", "datapatterns"]`` find the views."""
    from alembic.util import DispatchPriority  # noqa: PLC0415 -- Alembic is being imported

    plugin.add_autogenerate_comparator(
        _leave_out_ours,
        "schema",
        "materialized_views",
        qualifier="postgresql",
        priority=DispatchPriority.FIRST,
    )
    plugin.add_autogenerate_comparator(
        _compare_views,
        "schema",
        "materialized_views",
        qualifier="postgresql",
        # After the tables: what is to become of them decides about the views on them.
        priority=DispatchPriority.LAST,
    )
    plugin.add_autogenerate_comparator(
        _compare_indexes,
        "schema",
        "index_tables",
        qualifier="postgresql",
        priority=DispatchPriority.LAST,
    )


def _compare_views(*given: Any) -> "PriorityDispatchResult":  # noqa: ANN401 -- what Alembic gives
    from alembic.util import PriorityDispatchResult  # noqa: PLC0415 -- Alembic is imported by now

    from datapatterns.alembic.autogenerate import compare_views  # noqa: PLC0415 -- not before

    compare_views(*given)
    return PriorityDispatchResult.CONTINUE


def _compare_indexes(*given: Any) -> "PriorityDispatchResult":  # noqa: ANN401 -- what Alembic gives
    from alembic.util import PriorityDispatchResult  # noqa: PLC0415 -- Alembic is imported by now

    from datapatterns.alembic.indexes.comparing import compare_indexes  # noqa: PLC0415 -- not before

    compare_indexes(*given)
    return PriorityDispatchResult.CONTINUE


def _leave_out_ours(*given: Any) -> "PriorityDispatchResult":  # noqa: ANN401 -- what Alembic gives
    from alembic.util import PriorityDispatchResult  # noqa: PLC0415 -- Alembic is imported by now

    from datapatterns.alembic.autogenerate import leave_out_ours  # noqa: PLC0415 -- not before

    leave_out_ours(*given)
    return PriorityDispatchResult.CONTINUE
