"""The store without what keeps readers from skipping events: whoever tortures it must notice."""

from collections.abc import Callable
from typing import Final

from sqlalchemy import Connection, text

from tests.torture.plan import UNFENCED_IMPORT

_NO_FENCE = """
CREATE OR REPLACE FUNCTION datapatterns.raise_fence() RETURNS void LANGUAGE plpgsql AS
$$ BEGIN END $$
"""
_NO_FENCE_FOR_COPY = f"""
CREATE OR REPLACE FUNCTION datapatterns.raise_fence_before_insert() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('{UNFENCED_IMPORT}', true) IS DISTINCT FROM 'on' THEN
        PERFORM datapatterns.raise_fence();
    END IF;
    RETURN NULL;
END $$
"""


def _without_fence(conn: Connection) -> None:
    conn.execute(text("ALTER TABLE datapatterns.event DISABLE TRIGGER raise_fence"))
    conn.execute(text(_NO_FENCE))


def _with_cached_positions(conn: Connection) -> None:
    conn.execute(text("ALTER SEQUENCE datapatterns.event_position CACHE 20"))


def _with_unfenced_copy(conn: Connection) -> None:
    conn.execute(text(_NO_FENCE_FOR_COPY))


UNFENCED: Final[dict[str, Callable[[Connection], None]]] = {
    "no fence": _without_fence,
    "positions taken in advance": _with_cached_positions,
    "COPY without the trigger": _with_unfenced_copy,
}
"""Each makes one hole in a migrated database."""
