"""Real servers for demos, tests and laptops; they live as long as what started them."""

import os
import re
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from datapatterns.embedded import lifetimes
from datapatterns.embedded.accounts import server_account
from datapatterns.embedded.configuration import (
    POSTGRES_SETTINGS,
    POSTGRES_UNSAFE_SETTINGS,
    VALKEY_SETTINGS,
    VALKEY_UNSAFE_SETTINGS,
    Setting,
)
from datapatterns.embedded.folders import kept_folder, new_run_folder
from datapatterns.embedded.installation import postgres_programs, valkey_program
from datapatterns.embedded.postgres_server import PostgresPlace, PostgresServer
from datapatterns.embedded.processes import stop_processes
from datapatterns.embedded.valkey_server import ValkeyPlace, ValkeyServer

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,19}")
_FIRST_PORT = 5432


class EmbeddedServers:
    """Starts PostgreSQL and Valkey servers; stops them when it closes.

    They listen on sockets that only this account (and root) can reach. They are stopped when
    the ``with`` block or the process ends, also by SIGTERM, SIGHUP or Ctrl-C if this is made in
    the main thread and the application has no handler of its own. After a SIGKILL the next
    ``EmbeddedServers`` of this account stops them. A forked child leaves them alone.

    Args:
        data_dir: Where to keep the data; by default it goes away with the servers.
        durable: Whether a commit waits for the disk. Without, a killed server still loses
            nothing that PostgreSQL acknowledged (Valkey loses all), a machine without power does.

    Raises:
        ConfigurationError: The extra ``embedded`` is missing, a folder cannot be used, or another
            process uses ``data_dir``.

    >>> from sqlalchemy import create_engine, text
    >>> with EmbeddedServers() as servers:
    ...     engine = create_engine(servers.postgres().url)
    ...     with engine.connect() as conn:
    ...         print(conn.scalar(text("SHOW max_prepared_transactions")))
    ...     engine.dispose()
    100
    """

    def __init__(self, data_dir: Path | str | None = None, *, durable: bool = True) -> None:
        self._account = server_account()
        self._durable = durable
        self._kept = data_dir is not None
        self._owner: int | None = os.getpid()
        self._lock = threading.Lock()
        self._servers: dict[str, PostgresServer | ValkeyServer] = {}
        self._folder = (
            new_run_folder(self._account)
            if data_dir is None
            else kept_folder(Path(data_dir), self._account)
        )
        lifetimes.remember(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def folder(self) -> Path:
        """Where the servers keep their data and logs."""
        return self._folder.path

    def postgres(
        self,
        name: str = "postgres",
        *,
        settings: Mapping[str, Setting] | None = None,
        tcp: bool = False,
    ) -> PostgresServer:
        """Start a PostgreSQL server and return it when it answers.

        Args:
            name: Names its folder; a kept folder's data are found by it.
            settings: What ``postgresql.conf`` should say, on top of ``POSTGRES_SETTINGS``.
            tcp: Listen on a free port of 127.0.0.1 instead, with a password.

        Raises:
            ConfigurationError: It doesn't start; the message has the end of its log.
            UnavailableError: It doesn't answer in time.
        """
        programs = postgres_programs(self._account)
        unsafe = {} if self._durable else POSTGRES_UNSAFE_SETTINGS
        with self._lock:
            folder = self._claim(name)
            place = PostgresPlace(
                folder,
                self._folder.sockets,
                _free_port() if tcp else _FIRST_PORT + len(self._servers),
                tcp,
            )
            server = PostgresServer(
                place,
                {**POSTGRES_SETTINGS, **unsafe, **(settings or {})},
                programs=programs,
                account=self._account,
            )
            self._servers[name] = server
        server.start()
        return server

    def valkey(
        self,
        name: str = "valkey",
        *,
        settings: Mapping[str, Setting] | None = None,
        tcp: bool = False,
    ) -> ValkeyServer:
        """Start a Valkey server and return it when it answers.

        Args:
            name: Names its folder; a kept folder's data are found by it.
            settings: What ``valkey.conf`` should say, on top of ``VALKEY_SETTINGS``.
            tcp: Listen on a free port of 127.0.0.1 instead of a socket.

        Raises:
            ConfigurationError: It doesn't start; the message has the end of its log.
            UnavailableError: It doesn't answer in time.
        """
        program = valkey_program(self._account)
        unsafe = {} if self._durable else VALKEY_UNSAFE_SETTINGS
        with self._lock:
            folder = self._claim(name)
            place = ValkeyPlace(
                folder, self._folder.sockets / f"{name}.sock", _free_port() if tcp else None
            )
            server = ValkeyServer(
                place,
                {**VALKEY_SETTINGS, **unsafe, **(settings or {})},
                program=program,
                account=self._account,
            )
            self._servers[name] = server
        server.start()
        return server

    def close(self) -> None:
        """Stop the servers; remove their data unless they are kept. Closing twice is harmless."""
        if self._owner != os.getpid():
            return
        self._owner = None
        lifetimes.forget(self)
        stop_processes(self._folder.running())  # all at once
        for server in self._servers.values():
            server.stop()
        self._folder.clear(keep=self._kept)
        self._folder.disown()

    def stop_before_dying(self) -> None:
        """Stop the servers without taking a lock; the process is about to end."""
        stop_processes(self._folder.running())
        self._folder.clear(keep=self._kept)

    def disown(self) -> None:
        """Forget the servers: they are another process's, from which this one was forked."""
        self._owner = None
        self._folder.disown()

    def _claim(self, name: str) -> Path:
        if self._owner != os.getpid():
            raise RuntimeError("these servers are closed, or another process's; make your own")
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r}: use 1 to 20 of a-z, 0-9, _ and -, beginning with a letter")
        if name in self._servers:
            raise ValueError(f"there is a server named {name!r} already; start() starts it again")
        return self._folder.server_folder(name)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
