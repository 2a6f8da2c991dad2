"""A load is one view of the database, whatever commits while the server is at it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, text

from datapatterns.event_sourcing import ANY, EventStore, StreamId
from datapatterns.testing import wait_until
from tests.fixtures.tills import Scanned, Till, told, types

store = EventStore(types=types)
KEYS = ("1", "2")

_AS_VOLATILE = text(
    "DO $$ BEGIN EXECUTE 'ALTER FUNCTION ' || 'datapatterns.load_streams'::regproc::regprocedure"
    " || ' VOLATILE'; END $$"
)
_WAITS_FOR_SNAPSHOTS = text(
    "SELECT EXISTS (SELECT FROM pg_locks"
    " WHERE relation = 'datapatterns.snapshot'::regclass AND NOT granted)"
)


def scan(conn: Connection) -> None:
    """Scan something at each till."""
    for key in KEYS:
        store.append(conn, StreamId("till", key), [Scanned(1, 5)], expected_version=ANY)


@contextmanager
def stopped_before_snapshots(engine: Engine) -> Iterator[None]:
    """Let loads get no further than the first stream's version while this lasts."""
    with engine.connect() as gatekeeper:
        gatekeeper.execute(text("LOCK TABLE datapatterns.snapshot IN ACCESS EXCLUSIVE MODE"))
        yield
        gatekeeper.rollback()


def seen_while_others_scan(engine: Engine) -> list[dict[str, object]]:
    """Return what a load sees that stands still inside the function while others commit."""
    with engine.begin() as conn:
        scan(conn)
    with ThreadPoolExecutor(1) as pool, engine.connect() as reader:
        with stopped_before_snapshots(engine), engine.connect() as looking:
            loading = pool.submit(store.load_many, reader, Till, KEYS)
            wait_until(lambda: looking.scalar(_WAITS_FOR_SNAPSHOTS))
            with engine.begin() as conn:
                scan(conn)
        return [told(till) for till in loading.result()]


def once_scanned() -> list[dict[str, object]]:
    tills = [Till(key) for key in KEYS]
    for till in tills:
        till.emit(Scanned(1, 5))
    return [told(till) for till in tills]


def test_what_commits_while_a_load_is_under_way_is_in_none_of_its_streams(engine: Engine) -> None:
    assert seen_while_others_scan(engine) == once_scanned()


def test_statements_with_views_of_their_own_would_show_it(engine: Engine) -> None:
    """The control."""
    with engine.begin() as conn:
        conn.execute(_AS_VOLATILE)

    assert seen_while_others_scan(engine) != once_scanned()
