"""One PostgreSQL server."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql
from sqlalchemy import URL

from datapatterns.embedded.accounts import ServerAccount
from datapatterns.embedded.configuration import (
    HOST_BASED_AUTHENTICATION,
    Setting,
    postgres_configuration,
)
from datapatterns.embedded.folders import cached_folder, remove_tree
from datapatterns.embedded.installation import PostgresPrograms
from datapatterns.embedded.processes import ServerProcess
from datapatterns.embedded.starting import wait_until_it_answers
from datapatterns.errors import EmbeddedStartError
from datapatterns.failpoints import failpoint

SUPERUSER = "postgres"

_INITDB_OPTIONS = (
    f"--username={SUPERUSER}",
    "--encoding=UTF8",
    "--no-locale",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--auth=trust",
    "--no-sync",
    "--no-instructions",
)


@dataclass(frozen=True, slots=True)
class PostgresPlace:
    """Where a server lives.

    Attributes:
        folder: Its own folder: the data, the log.
        sockets: The folder for its socket.
        port: The number in the socket's name, and the port on 127.0.0.1 if it listens there.
        tcp: Whether it listens on 127.0.0.1.
    """

    folder: Path
    sockets: Path
    port: int
    tcp: bool


class PostgresServer:
    """A real PostgreSQL server that can be stopped, killed, paused, and started again.

    Made by ``EmbeddedServers.postgres``; it keeps its data and its address until that closes.
    """

    def __init__(
        self,
        place: PostgresPlace,
        settings: Mapping[str, Setting],
        *,
        programs: PostgresPrograms,
        account: ServerAccount,
    ) -> None:
        self._place = place
        self._programs = programs
        self._account = account
        self._settings = settings
        self._password = secrets.token_urlsafe(16) if place.tcp else None
        self._data = place.folder / "data"
        self._process = ServerProcess(
            [programs.programs / "postgres", "-D", place.folder],
            folder=place.folder,
            account=account,
        )

    @property
    def url(self) -> URL:
        """Its address, for SQLAlchemy; ``url.set(database=...)`` names another database."""
        if self._place.tcp:
            return URL.create(
                "postgresql+psycopg",
                username=SUPERUSER,
                password=self._password,
                host="127.0.0.1",
                port=self._place.port,
                database="postgres",
            )
        return self._socket_url

    @property
    def is_running(self) -> bool:
        """Whether its process exists, be it paused."""
        return self._process.pid is not None

    @property
    def pid(self) -> int | None:
        """The process id of the server, None unless it runs."""
        return self._process.pid

    def start(self) -> None:
        """Start it and return when it answers; nothing happens if it runs.

        Raises:
            EmbeddedStartError: It ended at once; the message has the end of its log.
            EmbeddedTimeoutError: It doesn't answer in ``START_SECONDS``.
        """
        if self.is_running:
            return
        if not self._data.exists():
            self._make_data()
        self._configure()
        self._process.start()
        failpoint("embedded.process-started")
        wait_until_it_answers("PostgreSQL", self._process, self._answers)
        if self._password is not None:
            self._set_password(self._password)

    def stop(self) -> None:
        """Stop it in good order: its clients are disconnected, open transactions undone."""
        self._process.stop()

    def kill(self) -> None:
        """Stop it as a crash does (SIGKILL); the next start recovers what was committed."""
        self._process.kill()

    def pause(self) -> None:
        """Freeze it: connections stay open, nothing answers."""
        self._process.pause()

    def resume(self) -> None:
        """Go on after ``pause``."""
        self._process.resume()

    def _make_data(self) -> None:
        template = cached_folder(
            f"postgres-{self._programs.version}-uid{self._account.uid}", self._account, self._initdb
        )
        # Renamed when complete: a kept folder must never hold half of a cluster.
        partial = self._place.folder / "data.partial"
        remove_tree(partial)
        self._account.make_folder(partial)
        failpoint("embedded.data-begun")
        problem = self._account.run(["/bin/cp", "-Rp", f"{template}/data/.", partial])
        if problem:
            raise EmbeddedStartError("PostgreSQL", f"its data folder cannot be made: {problem}")
        partial.rename(self._data)

    def _initdb(self, folder: Path) -> None:
        data = folder / "data"
        self._account.make_folder(data)
        initdb: list[str | Path] = [
            self._programs.programs / "initdb",
            "-D",
            data,
            *_INITDB_OPTIONS,
        ]
        if problem := self._account.run(initdb):
            raise EmbeddedStartError("PostgreSQL", f"initdb failed: {problem}")

    def _configure(self) -> None:
        place = self._place
        fixed: dict[str, Setting] = {
            "data_directory": str(self._data),
            "port": place.port,
            "listen_addresses": "127.0.0.1" if place.tcp else "",
            "unix_socket_directories": f'"{place.sockets}"',
            "unix_socket_permissions": "0700",
        }
        # These files are ours, not the account's: through them it could make root write elsewhere.
        for name, content in [
            ("postgresql.conf", postgres_configuration({**self._settings, **fixed})),
            ("pg_hba.conf", HOST_BASED_AUTHENTICATION),
            ("pg_ident.conf", ""),
        ]:
            self._account.write_file(place.folder / name, content)

    @property
    def _socket_url(self) -> URL:
        return URL.create(
            "postgresql+psycopg",
            username=SUPERUSER,
            database="postgres",
            query={"host": str(self._place.sockets), "port": str(self._place.port)},
        )

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(
            host=str(self._place.sockets),
            port=self._place.port,
            user=SUPERUSER,
            dbname="postgres",
            connect_timeout=5,
            autocommit=True,
        )

    def _answers(self) -> bool:
        try:
            self._connect().close()
        except psycopg.OperationalError:
            return False  # it says why in its log
        return True

    def _set_password(self, password: str) -> None:
        with self._connect() as conn:
            conn.execute(
                sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(SUPERUSER), password)
            )
