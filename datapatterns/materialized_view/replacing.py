"""Give a view another query, in a migration, without a moment in which there is nothing to read."""

from sqlalchemy import Connection, update

from datapatterns.change_log.consuming import read_consumer
from datapatterns.change_log.locking import take_turn
from datapatterns.materialized_view.blueprint import Blueprint
from datapatterns.materialized_view.creating import (
    create_from_blueprint,
    create_shown,
    drop_view,
)
from datapatterns.materialized_view.dependants import require_replaceable
from datapatterns.materialized_view.locking import hold_versions
from datapatterns.materialized_view.meaning import as_noted
from datapatterns.materialized_view.names import ViewNames
from datapatterns.materialized_view.realtime import create_realtime
from datapatterns.materialized_view.records import read_blueprint, read_logs
from datapatterns.materialized_view.schema import materialized_views
from datapatterns.materialized_view.stacking import require_no_children
from datapatterns.materialized_view.switching import keeps_columns, switch_view


def replace_view(
    conn: Connection, names: ViewNames, blueprint: Blueprint, *, at_once: bool = False
) -> None:
    """Make the view what ``blueprint`` says: now, or as soon as its rows are there.

    Readers see the rows of today's version until the next one, which is made beside it, has been
    populated and refreshed; that needs transactions of its own. A version that nobody has
    populated is replaced now, and so is one of the same stored rows. Another version that was
    going to take its place goes.

    Args:
        conn: A connection in a transaction, such as a migration's. The caller commits.
        names: The view's.
        blueprint: What it shall be.
        at_once: Replace it now in any case; then it has to be populated anew.

    Raises:
        CaptureRefusedError: Changes of one of its tables would be missed.
        ViewDefinitionError: The server says why the query cannot be kept so.
        ViewInUseError: Other views are built upon what it stores; drop and create them anew.
        ViewMigrationError: Something that stands upon the view needs its old columns.
    """
    take_turn(conn, schema=names.schema)
    hold_versions(conn, names)
    drop_view(conn, names.next)
    live = read_blueprint(conn, names)
    if live is None:
        create_from_blueprint(conn, names, blueprint)
    elif stores_the_same(live, blueprint):
        _restate(conn, names, blueprint)
    else:
        require_no_children(conn, names)
        create_from_blueprint(conn, names.next, blueprint.under(names, names.next))
        if not keeps_columns(conn, names):
            require_replaceable(conn, names, blueprint.columns)
        consumer = read_consumer(conn, names.consumer, schema=names.schema)
        if at_once or consumer is None or not consumer.populated:
            switch_view(conn, names)


def stores_the_same(live: Blueprint, blueprint: Blueprint) -> bool:
    """Return whether stored rows of one are those of the other, so that they can stay."""
    return (live.digest, live.strategy, live.key, live.key_is_unique) == (
        blueprint.digest,
        blueprint.strategy,
        blueprint.key,
        blueprint.key_is_unique,
    )


def _restate(conn: Connection, names: ViewNames, blueprint: Blueprint) -> None:
    """Write down anew how the same rows are shown."""
    with as_noted(conn, names):
        create_shown(conn, names, blueprint)
        create_realtime(conn, names, blueprint, read_logs(conn, names))
    views = materialized_views(names.schema)
    conn.execute(
        update(views)
        .where(views.c.name == names.view)
        .values(blueprint=blueprint.to_json(), reason=blueprint.reason)
    )
