"""Databases of the demo's own, on a server that may be somebody's.

They carry a comment that says whose they are. Only databases with that comment are ever dropped,
and those whose making was interrupted before they got it; another one of the same name is refused.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy import URL, Connection, Engine, text

from datapatterns.connecting import database_version, open_engine
from datapatterns.errors import ConflictError, SettingsError
from datapatterns.urls import shown_database

MAIN_NAME = "datapatterns_demo"
SHARD_NAMES = tuple(f"{MAIN_NAME}_s{number}" for number in range(5))

_MARK = "made by datapatterns demo; safe to drop"
_UNFINISHED = 7_239_101
"""The connection limit of a database from its creation until it carries the comment."""

_LOCK = 7_239_101  # one demo at a time on a server: the second would drop the first one's data


@contextmanager
def demo_databases(server: URL, names: Sequence[str], *, keep: bool) -> Iterator[list[URL]]:
    """Create empty databases on ``server``, and drop them at the end unless they are kept.

    What an interrupted demo left is dropped first.

    Raises:
        ConflictError: Another demo is running on this server.
        SettingsError: A database of that name is not the demo's, or none may be created.
        ServerTooOldError: The server is older than PostgreSQL 14.
        ServerUnavailableError: It did not answer.
    """
    engine = open_engine(server)
    try:
        database_version(engine, shown_database(server))  # refuses one that is away or too old
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            _take_turn(conn)
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
                    _drop_all(engine, names)
    finally:
        engine.dispose()


def _take_turn(conn: Connection) -> None:
    """Refuse to go on while another demo uses this server, through whichever database.

    An advisory lock counts in one database, but everybody sees those of all; because each demo
    takes its own before it looks, two that begin at once never both go on.
    """
    conn.execute(text("SELECT pg_advisory_lock_shared(:lock)"), {"lock": _LOCK})
    others = conn.scalar(
        text(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 0"
            " AND objid = :lock AND objsubid = 1 AND pid <> pg_backend_pid()"
        ),
        {"lock": _LOCK},
    )
    if others:
        raise ConflictError("another demo is running on this server; wait for its end")


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
        text(
            "SELECT shobj_description(oid, 'pg_database') AS comment, datconnlimit"
            " FROM pg_database WHERE datname = :name"
        ),
        {"name": name},
    ).one_or_none()
    if found is not None and found.comment != _MARK and found.datconnlimit != _UNFINISHED:
        raise SettingsError(
            "--database-url",
            f"there is a database {name} that the demo did not make; rename it, or name another"
            " server",
        )


def _drop_all(engine: Engine, names: Sequence[str]) -> None:
    # On a connection of its own: Ctrl-C breaks the one whose statement it interrupts.
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        for name in names:
            _drop(conn, name)


def _drop(conn: Connection, name: str) -> None:
    conn.execute(text(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'))


def _create(conn: Connection, name: str) -> None:
    # A comment cannot be part of the creation; whoever is interrupted in between is known by this.
    conn.execute(
        text(f'CREATE DATABASE "{name}" TEMPLATE template0 CONNECTION LIMIT {_UNFINISHED}')
    )
    conn.execute(text(f"COMMENT ON DATABASE \"{name}\" IS '{_MARK}'"))
    conn.execute(text(f'ALTER DATABASE "{name}" CONNECTION LIMIT -1'))
