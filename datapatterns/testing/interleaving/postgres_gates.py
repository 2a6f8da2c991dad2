"""psycopg connections that pass a gate before each round trip.

psycopg sends everything as a generator that it gives to ``Connection.wait``: statements, COPY,
``executemany``, server-side cursors, pipelines, COMMIT and ROLLBACK. That is the only place that
is overridden.
"""

# ruff: noqa: ANN401 -- what psycopg takes and returns

import re
from collections.abc import Generator
from enum import Enum, auto
from typing import Any, TypeVar, cast

import psycopg
from psycopg.pq import ConnStatus, TransactionStatus

from datapatterns.testing.interleaving.labels import (
    is_gated,
    label_of,
    statement_of,
    waits_for_a_message,
)
from datapatterns.testing.interleaving.servers import Backend
from datapatterns.testing.interleaving.stage import Stage
from datapatterns.testing.interleaving.tasks import Task, TaskCrashed, through, through_async

T = TypeVar("T")

# What a session remembers after a transaction. Functions can hide it; locks are asked for, too.
_LEAVES_TRACES = re.compile(
    r"(\A(\s|--[^\n]*\n|/\*.*?\*/)*|;\s*)"
    r"(set(?!\s+(local|transaction|constraints))|reset|discard|listen|unlisten|load"
    r"|prepare(?!\s+transaction)|create\s+(or\s+replace\s+)?(local\s+|global\s+)?temp(orary)?)\b"
    r"|\bset_config\s*\(|\bpg_(try_)?advisory_lock|\binto\s+temp(orary)?\b|\bwith\s+hold\b",
    re.IGNORECASE | re.DOTALL,
)


class _Way(Enum):
    """How a round trip is made."""

    GATED = auto()
    COUNTED = auto()
    FREE = auto()
    NOT = auto()


class _GatedLink:
    """What both kinds of connection need; ``stage`` and ``server`` are set when one is made.

    Attributes:
        on_loan: Somebody has it, rather than a pool: what a pool asks on its own is no step.
        owner: The task that has opened it for itself, without a pool.
        has_traces: Something was set that outlives a transaction.
    """

    pgconn: psycopg.pq.abc.PGconn
    stage: Stage
    server: str
    used_by: Task | None = None
    owner: Task | None = None
    on_loan = True
    has_traces = False

    def backend(self) -> Backend | None:
        """Return the session behind it, unless it is closed."""
        if self.pgconn.status == ConnStatus.BAD:
            return None
        return Backend(self.server, self.pgconn.backend_pid)

    def outlives(self, task: Task) -> bool:
        """Return whether no transaction is open, and a pool has it."""
        idle = {TransactionStatus.IDLE, TransactionStatus.UNKNOWN}
        return self.owner is not task and self.pgconn.transaction_status in idle

    def hang_up(self) -> None:
        """Close it without a word, and return when its backend and its locks are gone."""
        if (backend := self.backend()) is not None:
            self.pgconn.finish()
            self.stage.servers.until_gone(backend)

    def interrupt(self) -> None:
        """Cancel what it does at the server."""
        if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
            self.pgconn.get_cancel().cancel()

    def lost(self) -> Exception:
        """Return the error of a broken connection: as in reality, without SQLSTATE."""
        return psycopg.OperationalError("the connection is lost (a fault of the test)")

    def way(self, gen: object, label: str, task: Task | None) -> _Way:
        """Decide how a round trip is made."""
        if task is None or waits_for_a_message(gen):
            return _Way.FREE
        if task.stage is not self.stage:
            raise ValueError(f"{task.name!r} uses a connection of another explorer: {label}")
        if self.pgconn.status == ConnStatus.BAD:
            if not task.dead:
                return _Way.FREE
            if label == "ROLLBACK":
                return _Way.NOT  # a pool that cleans up after the dead shall not fail
            raise TaskCrashed(label)
        if not self.on_loan:
            return _Way.COUNTED
        if label in {"COMMIT", "ROLLBACK"}:
            # Without a transaction psycopg sends nothing.
            idle = self.pgconn.transaction_status == TransactionStatus.IDLE
            return _Way.FREE if idle else _Way.GATED
        self.has_traces = self.has_traces or bool(_LEAVES_TRACES.search(statement_of(gen)))
        return _Way.GATED if is_gated(gen) else _Way.COUNTED


class GatedConnection(psycopg.Connection[Any], _GatedLink):
    """A psycopg connection that waits for its turn."""

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **kwargs: Any) -> T:
        """Run ``gen`` when it is this task's turn."""
        label = label_of(gen)
        way = self.way(gen, label, self.stage.current_task())
        if way is _Way.NOT:
            return _left_out(gen)
        if way is _Way.FREE:
            return super().wait(gen, *args, **kwargs)
        return through(
            label,
            self,
            lambda: super(GatedConnection, self).wait(gen, *args, **kwargs),
            gated=way is _Way.GATED,
        )


class GatedAsyncConnection(psycopg.AsyncConnection[Any], _GatedLink):
    """An asynchronous psycopg connection that waits for its turn."""

    async def wait(self, gen: Generator[Any, Any, T], *args: Any, **kwargs: Any) -> T:
        """Run ``gen`` when it is this task's turn."""
        label = label_of(gen)
        way = self.way(gen, label, self.stage.current_task())
        if way is _Way.NOT:
            return _left_out(gen)
        if way is _Way.FREE:
            return await super().wait(gen, *args, **kwargs)
        return await through_async(
            label,
            self,
            lambda: super(GatedAsyncConnection, self).wait(gen, *args, **kwargs),
            gated=way is _Way.GATED,
        )


def _left_out(gen: Generator[Any, Any, T]) -> T:
    gen.close()
    return cast("T", None)
