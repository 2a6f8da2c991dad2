"""The store without what keeps readers from skipping events: whoever tortures it must notice."""

from collections.abc import Callable
from typing import Final

from sqlalchemy import Connection, text

from tests.torture.plan import UNFENCED_IMPORT

_FENCE_BUT_FOR_COPY = f"""
DROP TRIGGER raise_fence ON datapatterns.event;
CREATE TRIGGER raise_fence BEFORE INSERT ON datapatterns.event FOR EACH STATEMENT
WHEN (current_setting('{UNFENCED_IMPORT}', true) IS DISTINCT FROM 'on')
EXECUTE FUNCTION datapatterns.raise_fence_before_insert()
"""


def _without_fence(conn: Connection) -> None:
    conn.execute(text("ALTER TABLE datapatterns.event DISABLE TRIGGER raise_fence"))


def _with_cached_positions(conn: Connection) -> None:
    conn.execute(text("ALTER SEQUENCE datapatterns.event_position CACHE 20"))


def _with_unfenced_copy(conn: Connection) -> None:
    conn.execute(text(_FENCE_BUT_FOR_COPY))


UNFENCED: Final[dict[str, Callable[[Connection], None]]] = {
    "no fence": _without_fence,
    "positions taken in advance": _with_cached_positions,
    "COPY without the trigger": _with_unfenced_copy,
}
"""Each makes one hole in a migrated database."""
