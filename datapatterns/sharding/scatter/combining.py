"""Let PostgreSQL finish what the shards began: bring their rows into one table and ask that.

As bytes, in the format of binary COPY, so that no value is read and written again on its way.
The table lives on a connection of its own, for a transaction that is rolled back: a transaction
that has touched a temporary table cannot be prepared.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from threading import Lock
from typing import Any, Final, cast

from psycopg import Error as DriverError
from psycopg.errors import InsufficientPrivilege
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.compiler import SQLCompiler

from datapatterns.errors import MergeLimitError, MissingRightsError
from datapatterns.sharding.driver_calls import settled
from datapatterns.sharding.engines import SESSION_SETTINGS, driver_engine
from datapatterns.sharding.maps.ownership import shard_errors
from datapatterns.sharding.routing.key_conditions import Parameters
from datapatterns.sharding.scatter.copy_streams import read_all, write_all
from datapatterns.sharding.scatter.scatter_plan import ScatterPlan
from datapatterns.sharding.scatter.selected import AnySelect
from datapatterns.sql.poolers import settle_each_transaction

# What binary COPY begins and ends with: signature, flags, length of an extension; minus one.
_HEADER: Final = 19
_TRAILER: Final = 2


class Combiner:
    """Connections on which PostgreSQL combines what shards sent; each shard does it in turn.

    Connections of its own: a caller who holds one to each shard waits for none of those here that
    wait for one of theirs.
    """

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self._engines = engines
        self._own: dict[str, Engine] = {}
        self._lock = Lock()
        self._turns = count()

    @contextmanager
    def connection(self, shards: Sequence[str]) -> Iterator[Connection]:
        """Give a connection to one of ``shards``; whatever is done on it is rolled back.

        Raises:
            ShardUnavailableError: The shard does not answer.
        """
        shard_id = shards[next(self._turns) % len(shards)]
        with shard_errors(shard_id), self._engine(shard_id).connect() as conn:
            try:
                yield conn
            except BaseException as error:
                if not isinstance(error, Exception):
                    # Left in a COPY, it cannot even roll back, and that error would hide this one.
                    conn.invalidate()
                raise

    def close(self) -> None:
        """Close all connections that nobody uses."""
        for engine in self._own.values():
            engine.dispose()

    def _engine(self, shard_id: str) -> Engine:
        with self._lock:
            if shard_id not in self._own:
                theirs = self._engines[shard_id]
                # The pool knows how to connect, and whom to introduce itself to.
                own = driver_engine(
                    theirs.url, asynchronous=theirs.dialect.is_async, pool=theirs.pool.recreate()
                )
                self._own[shard_id] = settle_each_transaction(own, SESSION_SETTINGS)
            return self._own[shard_id]


def copy_out(conn: Connection, statement: AnySelect, parameters: Parameters) -> bytes:
    """Return the rows of ``statement``, as binary COPY sends them."""
    for listener in conn.dispatch.before_execute:  # it may confine the rows, as in any statement
        statement, _, parameters = listener(conn, statement, [], dict(parameters), {})
    written, values = _written(conn, statement, parameters)
    with _driver_errors(conn, written):
        command = f"COPY ({written}) TO STDOUT (FORMAT BINARY)"
        return cast("bytes", settled(read_all(_driver(conn), command, values)))


def combine(
    plan: ScatterPlan, parts: Sequence[bytes], conn: Connection, parameters: Parameters
) -> list[Sequence[Any]]:
    """Return the rows that one database would have returned for the whole statement.

    Args:
        plan: What was sent, and what is to be made of it.
        parts: What `copy_out` brought from each shard.
        conn: A connection to one of the shards, in a transaction that is to be rolled back.
        parameters: The values that the caller passed beside the statement.

    Raises:
        MergeLimitError: These are more rows than may be merged.
        MissingRightsError: The role may not create temporary tables.
    """
    assert plan.combined is not None
    _create_table(conn, plan.statement, parameters)
    if _copy_in(conn, parts) > plan.rows_max:
        raise MergeLimitError(plan.rows_max)
    return [*conn.execute(plan.combined, dict(parameters))]


def _create_table(conn: Connection, statement: AnySelect, parameters: Parameters) -> None:
    """Create a table for the rows of ``statement``: PostgreSQL knows their types and collations."""
    written, values = _written(conn, statement, parameters)
    try:
        conn.exec_driver_sql(
            "CREATE TEMPORARY TABLE datapatterns_partial_rows ON COMMIT DROP"
            f" AS {written} WITH NO DATA",
            values,
        )
    except DBAPIError as error:
        if isinstance(error.orig, InsufficientPrivilege):
            raise MissingRightsError(
                f"{error.orig.diag.message_primary}, and PostgreSQL combines there what shards sent"
            ) from error
        raise


def _copy_in(conn: Connection, parts: Sequence[bytes]) -> int:
    # One header and one trailer for all.
    rows = (memoryview(part)[_HEADER:-_TRAILER] for part in parts)
    pieces = [parts[0][:_HEADER], *rows, parts[0][-_TRAILER:]]
    command = "COPY pg_temp.datapatterns_partial_rows FROM STDIN (FORMAT BINARY)"
    with _driver_errors(conn, "COPY"):
        return cast("int", settled(write_all(_driver(conn), command, pieces)))


def _driver(conn: Connection) -> Any:  # noqa: ANN401 -- the driver's connection, of either kind
    return conn.connection.driver_connection


def _written(
    conn: Connection, statement: AnySelect, parameters: Parameters
) -> tuple[str, dict[str, Any]]:
    """Return what SQLAlchemy would send for ``statement``, and its parameters."""
    compiled = statement.compile(dialect=conn.dialect)
    assert isinstance(compiled, SQLCompiler)
    state = compiled.construct_expanded_state(dict(parameters))
    values = {
        name: state.processors[name](value) if name in state.processors else value
        for name, value in state.parameters.items()
    }
    return state.statement, values


@contextmanager
def _driver_errors(conn: Connection, written: str) -> Iterator[None]:
    """Raise what SQLAlchemy would have raised, had it sent the statement itself."""
    try:
        yield
    except DriverError as error:
        raise DBAPIError.instance(
            written, None, error, DriverError, hide_parameters=True, dialect=conn.dialect
        ) from error
