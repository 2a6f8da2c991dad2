"""Migrated databases for tests, copied from a template and dropped afterwards."""

import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from sqlalchemy import URL, Connection, Engine, create_engine, text

from datapatterns.sql.metadata import DEFAULT_SCHEMA
from datapatterns.sql.migrating import upgrade

_PREFIX = "datapatterns_tests"
_TEST_DATABASE = re.compile(rf"({_PREFIX}_[0-9a-f]{{12}})_[0-9a-z]+")


class Databases:
    """Hands out databases of one server that hold the library's tables, quickly.

    What a killed run left is dropped by the next. A run is known by a connection that it keeps:
    its application name begins the names of its databases, and while it is there they are safe.

    Args:
        server: A database of the server, under a role that may create others.
        schema: Where the library's tables go.
        prepare: Called once with a connection to the first database: what it creates, all have.

    Attributes:
        server: As given.
        run: What the names of this run's databases begin with.
    """

    def __init__(
        self,
        server: URL,
        *,
        schema: str = DEFAULT_SCHEMA,
        prepare: Callable[[Connection], object] | None = None,
    ) -> None:
        self.server = server
        self._schema, self._prepare = schema, prepare
        self.run = f"{_PREFIX}_{secrets.token_hex(6)}"
        self._admin = create_engine(
            server,
            isolation_level="AUTOCOMMIT",
            connect_args={"application_name": self.run},
            pool_pre_ping=True,
        )
        self._sign_of_life = self._admin.connect()
        self._copying = _cheapest_copying(self._sign_of_life)
        self._drop_leftovers()
        self._template = f"{self.run}_template"
        self._spare: URL | None = None

    def __enter__(self) -> Self:
        self._create(self._template, template="template0")
        with _disposed(self.server.set(database=self._template)) as engine, engine.begin() as conn:
            upgrade(conn, schema=self._schema)
            if self._prepare is not None:
                self._prepare(conn)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def new(self) -> URL:
        """Return the address of a new database, to be dropped by the caller or at the end."""
        url, self._spare = self._spare or self._new(), None
        return url

    def drop(self, url: URL) -> None:
        """Drop a database that ``new`` returned, even if somebody is connected to it."""
        # The backend of a client that has just left is there for another millisecond or two, and
        # who drops its database sleeps for 100 when it sees one. Meanwhile, make the next.
        self._spare = self._spare or self._new()
        self._drop(str(url.database))

    @contextmanager
    def lend(self) -> Iterator[URL]:
        """Lend a new database for a ``with`` block."""
        url = self.new()
        try:
            yield url
        finally:
            self.drop(url)

    def close(self) -> None:
        """Drop the databases of this run."""
        for name in self._existing():
            if name.startswith(f"{self.run}_"):
                self._drop(name)
        self._sign_of_life.close()
        self._admin.dispose()

    def _new(self) -> URL:
        name = f"{self.run}_{secrets.token_hex(4)}"
        self._create(name, template=self._template)
        return self.server.set(database=name)

    def _drop_leftovers(self) -> None:
        # Names first, signs of life second: a run gives its sign before it creates anything, so
        # whose database was there and whose sign is not, has ended.
        existing = self._existing()
        with self._admin.connect() as conn:
            alive = set(conn.scalars(text("SELECT application_name FROM pg_stat_activity")))
        for name in existing:
            match = _TEST_DATABASE.fullmatch(name)
            if match and match[1] not in alive:
                self._drop(name)

    def _existing(self) -> list[str]:
        with self._admin.connect() as conn:
            return list(conn.scalars(text("SELECT datname FROM pg_database")))

    def _create(self, name: str, *, template: str) -> None:
        with self._admin.connect() as conn:
            conn.execute(text(f'CREATE DATABASE "{name}" TEMPLATE "{template}" {self._copying}'))

    def _drop(self, name: str) -> None:
        with self._admin.connect() as conn:
            conn.execute(text(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'))


def _cheapest_copying(conn: Connection) -> str:
    """Return how CREATE DATABASE is to copy a template on this server.

    Copying files instead of logging each page takes half the CPU time, but waits for checkpoints.
    Where they wait for no disk that is nothing; elsewhere they flush what all others have written.
    Before PostgreSQL 15 there is no other way.
    """
    newer = conn.scalar(text("SELECT current_setting('server_version_num')::int >= 150000"))
    unsafe = conn.scalar(text("SHOW fsync")) == "off"
    return "STRATEGY FILE_COPY" if newer and unsafe else ""


@contextmanager
def _disposed(url: URL) -> Iterator[Engine]:
    engine = create_engine(url)
    try:
        yield engine
    finally:
        engine.dispose()
