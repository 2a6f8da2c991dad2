"""What happens to PostgreSQL servers, brought about on purpose."""

import os
import signal
import weakref
from types import TracebackType
from typing import Self

from sqlalchemy import URL, Connection, NullPool, create_engine, text
from sqlalchemy.exc import OperationalError

from datapatterns.embedded import PostgresServer
from datapatterns.errors import FaultRefusedError
from datapatterns.testing.faults.backends import (
    continue_backend,
    continue_backends,
    find_backend,
    stop_backend,
)
from datapatterns.testing.waiting import wait_until

APPLICATION_NAME = "datapatterns-faults"
"""What the tool's own connections are called."""

_TERMINATE_SECONDS = 10.0
_RECOVERY_SECONDS = 60.0

_MAY_SIGNAL = text("SELECT pg_has_role('pg_signal_backend', 'USAGE')")
_CONNECTIONS = text(
    "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'"
    " AND datname = current_database() AND application_name <> :own"
    " AND (CAST(:name AS text) IS NULL OR application_name = :name) ORDER BY backend_start, pid"
)
_IS_THERE = text("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = :pid)")
_TERMINATE = text("SELECT pg_terminate_backend(:pid, :milliseconds)")
_CANCEL = text("SELECT pg_cancel_backend(:pid)")


class PostgresFaults:
    """Breaks connections, backends and the server; puts right what is still stopped at the end.

    Killing and cancelling work on any server. Freezing and crashing a backend need one on this
    machine, under this account or root's. What happens to a whole server needs an embedded one.

    Args:
        server: An embedded server, or the URL of a database under a superuser or a member of
            ``pg_signal_backend``.

    Attributes:
        url: The database whose connections this is about.

    Raises:
        FaultRefusedError: The role may not signal other backends.
    """

    def __init__(self, server: PostgresServer | URL) -> None:
        self._server = server if isinstance(server, PostgresServer) else None
        self.url = server.url if isinstance(server, PostgresServer) else server
        self._engine = create_engine(
            self.url,
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
            connect_args={"application_name": APPLICATION_NAME},
        )
        self._stopped: set[int] = set()
        # A stopped backend would block the server's shutdown, also after a test that was aborted.
        self._put_right = weakref.finalize(self, continue_backends, self._stopped)
        with self._engine.connect() as conn:
            if not conn.scalar(_MAY_SIGNAL):
                raise FaultRefusedError(
                    "faults of PostgreSQL",
                    f"{self.url.username} may not end other connections; connect as a superuser,"
                    " or GRANT pg_signal_backend to it",
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let everything go on that was stopped. Closing twice is harmless."""
        continue_backends(self._stopped)
        if self._server is not None:
            self._server.resume()

    def connections(self, *, application_name: str | None = None) -> list[int]:
        """Return the process ids of the backends that serve this database, oldest first."""
        with self._engine.connect() as conn:
            names = {"own": APPLICATION_NAME, "name": application_name}
            return list(conn.scalars(_CONNECTIONS, names))

    def kill_backend(self, pid: int) -> None:
        """End one connection (57P01), as an administrator does; return when it is gone.

        Raises:
            TimeoutError: It doesn't end, for instance because it is frozen.
            ValueError: There is no such backend.
        """
        self._check(pid)
        with self._engine.connect() as conn:
            wanted = {"pid": pid, "milliseconds": round(1_000 * _TERMINATE_SECONDS)}
            if not conn.scalar(_TERMINATE, wanted) and conn.scalar(_IS_THERE, {"pid": pid}):
                raise TimeoutError(f"backend {pid} did not end within {_TERMINATE_SECONDS:g} s")

    def kill_connections(self, *, application_name: str | None = None) -> int:
        """End the connections to this database, or those of one application; return how many."""
        pids = self.connections(application_name=application_name)
        with self._engine.connect() as conn:
            milliseconds = round(1_000 * _TERMINATE_SECONDS)
            wanted = [{"pid": pid, "milliseconds": milliseconds} for pid in pids]
            return sum(bool(conn.scalar(_TERMINATE, one)) for one in wanted)

    def cancel(self, pid: int) -> None:
        """Cancel what a backend is executing (57014); nothing happens if it is idle.

        Raises:
            ValueError: There is no such backend.
        """
        self._check(pid)
        with self._engine.connect() as conn:
            conn.execute(_CANCEL, {"pid": pid})

    def pause_backend(self, pid: int) -> None:
        """Freeze one backend (SIGSTOP) until ``resume_backend``; it keeps its locks.

        Raises:
            FaultRefusedError: The server isn't on this machine, or another account's.
            ValueError: There is no such backend.
        """
        found = self._find(pid, fault="freezing a backend")
        self._stopped.add(found)
        stop_backend(found)

    def resume_backend(self, pid: int) -> None:
        """Let a frozen backend go on."""
        continue_backend(pid)
        self._stopped.discard(pid)

    def crash_backend(self, pid: int) -> None:
        """Kill one backend (SIGKILL); return when the server answers again.

        PostgreSQL trusts its shared memory no more then: it ends all connections and recovers.

        Raises:
            FaultRefusedError: The server isn't on this machine, or another account's.
            TimeoutError: It doesn't answer within a minute.
            ValueError: There is no such backend.
        """
        found = self._find(pid, fault="crashing a backend")
        with self._engine.connect() as witness:
            os.kill(found, signal.SIGKILL)
            wait_until(lambda: not _still_answers(witness), deadline_seconds=_RECOVERY_SECONDS)
            witness.invalidate()
        self._stopped.clear()
        wait_until(self._answers, deadline_seconds=_RECOVERY_SECONDS)

    def crash_and_restart(self) -> None:
        """Kill the server and all its processes (SIGKILL), start it; return when it answers.

        What was committed is recovered, except where ``synchronous_commit`` is off.

        Raises:
            FaultRefusedError: The server isn't embedded.
        """
        server = self._embedded("crashing the server")
        server.kill()
        self._stopped.clear()
        server.start()

    def restart(self) -> None:
        """Stop the server in good order (57P01), and start it; return when it answers.

        Raises:
            FaultRefusedError: The server isn't embedded.
        """
        server = self._embedded("restarting the server")
        server.stop()
        self._stopped.clear()
        server.start()

    def pause(self) -> None:
        """Freeze the server with all its backends (SIGSTOP) until ``resume``.

        Raises:
            FaultRefusedError: The server isn't embedded.
        """
        self._embedded("freezing the server").pause()

    def resume(self) -> None:
        """Let the server go on after ``pause``.

        Raises:
            FaultRefusedError: The server isn't embedded.
        """
        self._embedded("freezing the server").resume()
        self._stopped.clear()

    def _embedded(self, fault: str) -> PostgresServer:
        if self._server is None:
            raise FaultRefusedError(
                fault, "others may use it; give PostgresFaults an embedded PostgresServer"
            )
        return self._server

    def _check(self, pid: int) -> None:
        with self._engine.connect() as conn:
            if not conn.scalar(_IS_THERE, {"pid": pid}):
                raise ValueError(f"no backend of this server has the process id {pid}")

    def _find(self, pid: int, *, fault: str) -> int:
        self._check(pid)
        with self._engine.connect() as conn:
            sibling = conn.scalar(text("SELECT pg_backend_pid()"))
            assert sibling is not None
            return find_backend(pid, sibling=sibling, fault=fault)

    def _answers(self) -> bool:
        try:
            self._engine.connect().close()
        except OperationalError:
            return False  # it recovers
        return True


def _still_answers(conn: Connection) -> bool:
    try:
        conn.exec_driver_sql("SELECT 1").close()
    except OperationalError:
        return False
    return True
