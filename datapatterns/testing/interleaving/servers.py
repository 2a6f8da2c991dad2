"""What the servers say about the connections of a schedule: who waits, and who is gone."""

# ruff: noqa: ANN401 -- what psycopg takes and returns

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
# for a safe snapshot, and every role may call it. Process 0 stands for a prepared transaction.
_BLOCKED = """
SELECT pid, pg_blocking_pids(pid) || pg_safe_snapshot_blocking_pids(pid)
FROM unnest(%(pids)s::int[]) AS pid
WHERE pg_isolation_test_session_is_blocked(pid, %(by)s::int[])
"""
_WAITING = """
SELECT waiter, a.pid, coalesce(a.application_name, ''), coalesce(a.state, ''),
       coalesce(a.query, a.backend_type, '')
FROM unnest(%s::int[]) AS waiter
CROSS JOIN LATERAL unnest(
  pg_blocking_pids(waiter) || pg_safe_snapshot_blocking_pids(waiter)
) AS blocker
JOIN pg_stat_activity AS a ON a.pid = blocker
"""
# Not pg_stat_activity: that view joins names, and this is asked again and again.
_ALIVE = "SELECT 1 FROM pg_stat_get_activity(%s)"
_LOCKING = "SELECT DISTINCT pid FROM pg_locks WHERE pid = ANY(%s) AND granted"
# A stand-by has the identifier of its primary, and a start of its own.
_IDENTITY = """
SELECT (SELECT system_identifier FROM pg_control_system()),
       extract(epoch FROM pg_postmaster_start_time())
"""
# 15 or newer lets ordinary roles be granted the right.
_QUICK_DEADLOCKS = "SELECT has_parameter_privilege('deadlock_timeout', 'SET')"


class Backend(NamedTuple):
    """A session of a server."""

    server: str
    pid: int


class Blocker(NamedTuple):
    """A session for which another one waits."""

    waiter: Backend
    pid: int
    application_name: str
    state: str
    query: str


@dataclass(slots=True)
class _Control:
    connection: psycopg.Connection[Any]
    quick_deadlocks: bool


class Servers:
    """One connection of the explorer's own to each PostgreSQL server that tasks use."""

    def __init__(self) -> None:
        self._controls: dict[str, _Control] = {}
        self._names: dict[tuple[object, ...], str] = {}
        self._lock = threading.Lock()

    def watch(self, info: psycopg.ConnectionInfo, *args: Any, **kwargs: Any) -> str:
        """Return the server behind ``info``; see to it that there is a connection to it.

        Args:
            info: What a task's connection says of itself.
            args: How psycopg opened it.
            kwargs: The same, by name.

        Raises:
            psycopg.OperationalError: It cannot be reached.
        """
        # One server has many addresses: a socket, several hosts. Sessions reached by one can
        # wait for those reached by another.
        address = (info.host, info.hostaddr, info.port)
        with self._lock:
            if address not in self._names:
                connection = psycopg.connect(*args, **{**kwargs, "autocommit": True})
                self._names[address] = self._remember(info, connection)
            return self._names[address]

    def _remember(self, info: psycopg.ConnectionInfo, connection: psycopg.Connection[Any]) -> str:
        identity = connection.execute(_IDENTITY).fetchone()
        for name, control in self._controls.items():
            if control.connection.execute(_IDENTITY).fetchone() == identity:
                connection.close()
                return name
        row = connection.execute(_QUICK_DEADLOCKS).fetchone()
        name = f"{info.host}:{info.port}"
        self._controls[name] = _Control(connection, bool(row and row[0]))
        return name

    def has_quick_deadlocks(self, server: str) -> bool:
        """Return whether the role may shorten ``deadlock_timeout`` for itself."""
        return self._controls[server].quick_deadlocks

    def blocked(
        self, backends: Iterable[Backend], *, by: Iterable[Backend]
    ) -> dict[Backend, list[Backend]]:
        """Return which of these sessions wait for one of those, and for whom else."""
        found: dict[Backend, list[Backend]] = {}
        others = _by_server(by)
        for server, pids in _by_server(backends).items():
            rows = self._ask(server, _BLOCKED, {"pids": pids, "by": [*others[server], 0]})
            for pid, blockers in rows:
                found[Backend(server, pid)] = [Backend(server, each) for each in blockers]
        return found

    def blockers(self, backends: Iterable[Backend]) -> list[Blocker]:
        """Return for whom these sessions wait, strangers included."""
        return [
            Blocker(Backend(server, waiter), *rest)
            for server, pids in _by_server(backends).items()
            for waiter, *rest in self._ask(server, _WAITING, (pids,))
        ]

    def locking(self, backends: Iterable[Backend]) -> set[Backend]:
        """Return which of these sessions hold a lock."""
        return {
            Backend(server, pid)
            for server, pids in _by_server(backends).items()
            for (pid,) in self._ask(server, _LOCKING, (pids,))
        }

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
            self._names.clear()

    def _ask(self, server: str, query: str, values: Any) -> list[Any]:
        return self._controls[server].connection.execute(query, values).fetchall()


def _by_server(backends: Iterable[Backend]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for backend in backends:
        found[backend.server].append(backend.pid)
    return found
