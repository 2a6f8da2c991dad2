"""What the servers say about the connections of a schedule: who waits, and who is gone."""

# ruff: noqa: ANN401 -- what drivers, and the functions of users, take and return

import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import psycopg

_POLL_SECONDS = 0.001
_GONE_SECONDS_MAX = 30.0
# PostgreSQL's own isolation tests ask this function: it sees row locks, advisory locks and waits
# for a safe snapshot, and every role may call it.
_BLOCKED = """
SELECT pid FROM unnest(%(pids)s::int[]) AS pid
WHERE pg_isolation_test_session_is_blocked(pid, %(by)s::int[])
"""
_BLOCKED_BY_OTHERS = """
SELECT pid, pg_blocking_pids(pid) FROM unnest(%(pids)s::int[]) AS pid
WHERE pg_blocking_pids(pid) <> '{}'
"""
_ALIVE = "SELECT 1 FROM pg_stat_activity WHERE pid = %s"


class Backend(NamedTuple):
    """A session of a server."""

    server: str
    pid: int


@dataclass(slots=True)
class _Control:
    connection: psycopg.Connection[Any]
    quick_deadlocks: bool


class Servers:
    """One connection of the explorer's own to each PostgreSQL server that tasks use."""

    def __init__(self) -> None:
        self._controls: dict[str, _Control] = {}
        self._lock = threading.Lock()

    def watch(self, info: psycopg.ConnectionInfo, *args: Any, **kwargs: Any) -> None:
        """See to it that there is a connection to the server behind ``info``.

        Args:
            info: What a task's connection says of itself.
            args: How psycopg opened it.
            kwargs: The same, by name.

        Raises:
            psycopg.OperationalError: It cannot be reached.
        """
        server = _server(info)
        with self._lock:
            if server in self._controls:
                return
            connection = psycopg.connect(*args, **{**kwargs, "autocommit": True})
            row = connection.execute(
                "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"
            ).fetchone()
            self._controls[server] = _Control(connection, bool(row and row[0]))

    def backend_of(self, info: psycopg.ConnectionInfo) -> Backend:
        """Return the session behind a connection."""
        return Backend(_server(info), info.backend_pid)

    def has_quick_deadlocks(self, info: psycopg.ConnectionInfo) -> bool:
        """Return whether the role may shorten ``deadlock_timeout`` for itself."""
        return self._controls[_server(info)].quick_deadlocks

    def blocked(self, backends: Iterable[Backend], *, by: Iterable[Backend]) -> set[Backend]:
        """Return which of these sessions wait for one of those."""
        found: set[Backend] = set()
        others = _by_server(by)
        for server, pids in _by_server(backends).items():
            rows = self._ask(server, _BLOCKED, {"pids": pids, "by": others[server]})
            found |= {Backend(server, pid) for (pid,) in rows}
        return found

    def blockers(self, backends: Iterable[Backend]) -> list[tuple[int, list[int]]]:
        """Return which of these sessions wait for which, also for strangers."""
        return [
            row
            for server, pids in _by_server(backends).items()
            for row in self._ask(server, _BLOCKED_BY_OTHERS, {"pids": pids})
        ]

    def terminate(self, backends: Iterable[Backend]) -> None:
        """End these sessions, whatever they do, and return when they are gone."""
        backends = list(backends)
        for server, pids in _by_server(backends).items():
            self._ask(
                server, "SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) pid", (pids,)
            )
        for backend in backends:
            self.until_gone(backend)

    def until_gone(self, backend: Backend) -> None:
        """Return when a session whose connection was closed has released its locks.

        Raises:
            TimeoutError: It stays for 30 seconds.
        """
        # The backend of a closed connection lives on for some milliseconds and keeps its locks.
        deadline = time.monotonic() + _GONE_SECONDS_MAX
        while self._ask(backend.server, _ALIVE, (backend.pid,)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the session {backend.pid} outlives its closed connection")
            time.sleep(_POLL_SECONDS)

    def close(self) -> None:
        """Close the explorer's own connections."""
        with self._lock:
            for control in self._controls.values():
                control.connection.close()
            self._controls.clear()

    def _ask(self, server: str, query: str, values: Any) -> list[Any]:
        return self._controls[server].connection.execute(query, values).fetchall()


def _server(info: psycopg.ConnectionInfo) -> str:
    return f"{info.host}:{info.port}"


def _by_server(backends: Iterable[Backend]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for backend in backends:
        found[backend.server].append(backend.pid)
    return found
