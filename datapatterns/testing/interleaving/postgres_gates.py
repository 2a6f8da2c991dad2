"""psycopg connections that pass a gate before each round trip.

psycopg sends everything as a generator that it gives to ``Connection.wait``: statements, COPY,
``executemany``, server-side cursors, pipelines, COMMIT and ROLLBACK. That is the only place that
is overridden.
"""

# ruff: noqa: ANN401 -- what drivers, and the functions of users, take and return

from collections.abc import Generator
from typing import Any, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from datapatterns.testing.interleaving.servers import Backend, Servers
from datapatterns.testing.interleaving.tasks import CURRENT, Task, through, through_async

T = TypeVar("T")

_LABEL_CHARACTERS_MAX = 200
_ENDS = {"_commit_gen": "COMMIT", "_rollback_gen": "ROLLBACK", "_enter_gen": "BEGIN"}


class _GatedLink:
    """What both kinds of connection need; ``servers`` is set when one is made."""

    pgconn: psycopg.pq.abc.PGconn
    servers: Servers
    used_by: Task | None = None

    def backend(self) -> Backend | None:
        """Return the session behind it, unless it is closed."""
        if self.pgconn.status == psycopg.pq.ConnStatus.BAD:
            return None
        return self.servers.backend_of(psycopg.ConnectionInfo(self.pgconn))

    def in_transaction(self) -> bool:
        """Return whether a transaction is open."""
        return self.pgconn.transaction_status not in {
            TransactionStatus.IDLE,
            TransactionStatus.UNKNOWN,
        }

    def hang_up(self) -> None:
        """Close it without a word, and return when its backend and its locks are gone."""
        if (backend := self.backend()) is not None:
            self.pgconn.finish()
            self.servers.until_gone(backend)

    def lost(self) -> Exception:
        """Return the error of a broken connection: as in reality, without SQLSTATE."""
        return psycopg.OperationalError("the connection is lost (a fault of the test)")

    def _skips_gate(self, label: str) -> bool:
        task = CURRENT.get()
        if label not in {"COMMIT", "ROLLBACK"}:
            return False
        # No transaction: psycopg sends nothing. A dead process: nothing of it is sent any more,
        # and a pool that cleans up after it shall not fail.
        idle = self.pgconn.transaction_status == TransactionStatus.IDLE
        return idle or bool(task and task.dead and label == "ROLLBACK")


class GatedConnection(psycopg.Connection[Any], _GatedLink):
    """A psycopg connection that waits for its turn."""

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **kwargs: Any) -> T:
        """Run ``gen`` when it is this task's turn."""
        label = label_of(gen)
        if self._skips_gate(label):
            return _finished(gen) if self.pgconn.status else super().wait(gen, *args, **kwargs)
        return through(label, self, lambda: super(GatedConnection, self).wait(gen, *args, **kwargs))


class GatedAsyncConnection(psycopg.AsyncConnection[Any], _GatedLink):
    """An asynchronous psycopg connection that waits for its turn."""

    async def wait(self, gen: Generator[Any, Any, T], *args: Any, **kwargs: Any) -> T:
        """Run ``gen`` when it is this task's turn."""
        label = label_of(gen)
        if self._skips_gate(label):
            return (
                _finished(gen) if self.pgconn.status else await super().wait(gen, *args, **kwargs)
            )
        return await through_async(
            label, self, lambda: super(GatedAsyncConnection, self).wait(gen, *args, **kwargs)
        )


def label_of(gen: object) -> str:
    """Return what a generator of psycopg is about to send, shortened."""
    code, frame = getattr(gen, "gi_code", None), getattr(gen, "gi_frame", None)
    name = code.co_name if code else getattr(gen, "__name__", "a round trip")
    names = frame.f_locals if frame else {}
    query = names.get("query", names.get("statement"))
    if query is not None:
        return " ".join(_text(query).split())[:_LABEL_CHARACTERS_MAX]
    if "Pipeline" in type(names.get("self")).__name__:
        return f"pipeline {name.strip('_').removesuffix('_gen')}"
    if name == "_exit_gen" and "exc_val" in names:
        return "ROLLBACK" if names["exc_val"] else "COMMIT"
    return _ENDS.get(name, name.strip("_").removesuffix("_gen"))


def _text(query: object) -> str:
    if isinstance(query, bytes):
        return query.decode(errors="replace")
    if isinstance(query, psycopg.sql.Composable):
        return query.as_string(None)
    return str(query)


def _finished(gen: Generator[Any, Any, T]) -> Any:
    gen.close()
    return None
