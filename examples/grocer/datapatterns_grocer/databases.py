"""Databases of the demo's own, on a server that may be somebody's.

They carry a comment that says whose they are. Only databases with that comment are ever dropped;
one of the same name without it is refused.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy import URL, Connection, create_engine, make_url, text

from datapatterns.errors import ConflictError, SettingsError

MAIN_NAME = "datapatterns_demo"
SHARD_NAMES = tuple(f"{MAIN_NAME}_s{number}" for number in range(4))

_MARK = "made by datapatterns demo; safe to drop"
_LOCK = 7_239_101  # one demo at a time on a server: the second would drop the first one's data


@contextmanager
def demo_databases(server: URL, names: Sequence[str], *, keep: bool) -> Iterator[list[URL]]:
    """Create empty databases on ``server``, and drop them at the end unless they are kept.

    What an interrupted demo left is dropped first.

    Raises:
        ConflictError: Another demo is running on this server.
        SettingsError: A database of that name is not the demo's, or none may be created.
    """
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as conn:
            if not conn.scalar(text("SELECT pg_try_advisory_lock(:lock)"), {"lock": _LOCK}):
                raise ConflictError("another demo is running on this server; wait for its end")
            _check_rights(conn)
            for name in names:
                _refuse_a_strangers(conn, name)
            try:
                for name in names:
                    _drop(conn, name)
                    _create(conn, name)
                yield [server.set(database=name) for name in names]
            finally:
                if not keep:
                    for name in names:
                        _drop(conn, name)
    finally:
        engine.dispose()


def server_url(url: str) -> URL:
    """Return ``url`` for the driver that the library uses; it was checked before."""
    return make_url(url).set(drivername="postgresql+psycopg")


def _check_rights(conn: Connection) -> None:
    may = conn.scalar(
        text("SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = current_user")
    )
    if not may:
        raise SettingsError(
            "--database-url", "this role may not create databases; ALTER ROLE .. CREATEDB helps"
        )


def _refuse_a_strangers(conn: Connection, name: str) -> None:
    found = conn.execute(
        text("SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = :name"),
        {"name": name},
    ).one_or_none()
    if found is not None and found[0] != _MARK:
        raise SettingsError(
            "--database-url",
            f"there is a database {name} that the demo did not make; rename it, or name another"
            " server",
        )


def _drop(conn: Connection, name: str) -> None:
    conn.execute(text(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'))


def _create(conn: Connection, name: str) -> None:
    conn.execute(text(f'CREATE DATABASE "{name}" TEMPLATE template0'))
    conn.execute(text(f"COMMENT ON DATABASE \"{name}\" IS '{_MARK}'"))
