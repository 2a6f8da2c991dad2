"""Say several things to a server at once: a transaction begins with its first query, unasked.

Beneath SQLAlchemy's connection and psycopg's cursor, in the same transaction. The driver waits for
the answer to BEGIN before it sends a query; here both travel together. psycopg's own list of what
is prepared is kept, so that whoever uses the connection next finds it as the server has it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from psycopg import AsyncConnection, IsolationLevel, Pipeline
from psycopg import Connection as DriverConnection
from psycopg import __version__ as driver_version
from psycopg.abc import PQGen
from psycopg.errors import error_from_result
from psycopg.generators import execute, send
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.pq.abc import PGresult
from psycopg.waiting import Wait

KNOWN_DRIVER: Final = driver_version.startswith("3.3.")
"""Whether psycopg is one whose list of what is prepared is known, which has no public name.

With another one all is as it was without this module, and slower.
"""

_Either: TypeAlias = DriverConnection[Any] | AsyncConnection[Any]

_USABLE = (TransactionStatus.IDLE, TransactionStatus.INTRANS)
_IN_TRANSACTION = (TransactionStatus.INTRANS, TransactionStatus.INERROR)
_MOST_VALUES: Final = 65_535  # PQ_QUERY_PARAM_MAX_LIMIT of libpq
_MARK = "datapatterns_can_converse"


@dataclass(frozen=True, slots=True)
class Query:
    """A query with its values, as libpq takes them.

    Attributes:
        query: SQL with ``$1``.
        types: Of the values.
        params: The values.
        formats: How they are written.
    """

    query: bytes
    types: tuple[int, ...]
    params: Sequence[Any]
    formats: Sequence[Any]


def can_converse(driver: Any, known: dict[str, Any]) -> bool:  # noqa: ANN401 -- any driver's connection
    """Return whether `ask` can be used on a connection now.

    Args:
        driver: The driver's connection.
        known: What is remembered about it for as long as it lives.
    """
    kind = known.get(_MARK)
    if kind is None:
        kind = known[_MARK] = (
            isinstance(driver, DriverConnection)
            and Pipeline.is_supported()
            and KNOWN_DRIVER
            and driver.info.encoding == "utf-8"
        )
    return (
        kind and driver.pgconn.transaction_status in _USABLE and not driver.pgconn.pipeline_status
    )


def can_begin(driver: _Either) -> bool:
    """Return whether a transaction is to begin with what is executed next on a connection."""
    line = driver.pgconn
    return (
        not driver.autocommit
        and line.transaction_status == TransactionStatus.IDLE
        and not line.pipeline_status
        and Pipeline.is_supported()
    )


def ask(
    driver: _Either,
    query: Query,
    *,
    prepare: bool | None = None,
) -> PQGen[PGresult]:
    """Return the rows of ``query``; begin a transaction before if there is none.

    One round trip. What is asked often is prepared, as by psycopg itself.

    Raises:
        psycopg.Error: The server refuses it, or is not there.
    """
    if len(query.params) > _MOST_VALUES:
        _send(driver, query, None)  # libpq refuses it; in a pipeline, BEGIN would be under way
    manager = driver._prepared  # noqa: SLF001 -- there is no public name
    preparing, name = manager.get(query, prepare)  # type: ignore[arg-type] # it uses what ours has
    begins = not driver.autocommit and driver.pgconn.transaction_status == TransactionStatus.IDLE
    prepares = preparing.name == "SHOULD"
    driver.pgconn.enter_pipeline_mode()
    if begins:
        driver.pgconn.send_query_params(_begin(driver), None)
    if prepares:
        driver.pgconn.send_prepare(name, query.query, param_types=query.types)
    _send(driver, query, name if preparing.name != "NO" else None)
    results = yield from _results(driver, begins + prepares + 1)
    if not prepares or results[-2].status == ExecStatus.COMMAND_OK:
        key = manager.maybe_add_to_cache(query, preparing, name)  # type: ignore[arg-type] # as above
        if key is not None:
            manager.validate(key, preparing, name, results[-1:])
        yield from manager.maintain_gen(driver)
    for result in results:
        if result.status == ExecStatus.FATAL_ERROR:
            raise error_from_result(result)
    return results[-1]


def _send(driver: _Either, query: Query, prepared: bytes | None) -> None:
    if prepared is None:
        driver.pgconn.send_query_params(
            query.query, query.params, param_types=query.types, param_formats=query.formats
        )
    else:
        driver.pgconn.send_query_prepared(prepared, query.params, param_formats=query.formats)


def _results(driver: _Either, count: int) -> PQGen[list[PGresult]]:
    """Send what has been put together, and return one result for each part."""
    line = driver.pgconn
    line.pipeline_sync()
    if line.flush():
        yield from send(line)
    results: list[PGresult] = []
    while True:
        while line.is_busy():
            yield Wait.R
            line.consume_input()
        result = line.get_result()
        if result is None:  # the end of one part
            continue
        if result.status == ExecStatus.PIPELINE_SYNC:
            break
        results.append(result)
    assert len(results) == count
    line.exit_pipeline_mode()
    return results


def can_roll_back(driver: Any) -> bool:  # noqa: ANN401 -- any driver's connection
    """Return whether `roll_back` can be used on a connection, and there is something to end."""
    return (
        isinstance(driver, DriverConnection)
        and not driver.pgconn.pipeline_status
        and driver.pgconn.transaction_status in _IN_TRANSACTION
    )


def is_at_rest(driver: Any) -> bool:  # noqa: ANN401 -- any driver's connection
    """Return whether a connection can be given to others."""
    return (
        isinstance(driver, DriverConnection)
        and not driver.pgconn.pipeline_status
        and driver.pgconn.transaction_status == TransactionStatus.IDLE
    )


def roll_back(driver: DriverConnection[Any]) -> PQGen[bool]:
    """Roll a transaction back that only `ask` was used in; return whether that was done.

    psycopg forgets at a rollback what it has prepared, as that may be about what was made in the
    transaction. Here nothing was.
    """
    driver.pgconn.send_query(b"ROLLBACK")
    results = yield from execute(driver.pgconn)
    return all(result.status == ExecStatus.COMMAND_OK for result in results)


def _begin(driver: _Either) -> bytes:
    words = ["BEGIN"]
    if driver.isolation_level is not None:
        level = IsolationLevel(driver.isolation_level).name.replace("_", " ")
        words.append(f"ISOLATION LEVEL {level}")
    if driver.read_only is not None:
        words.append("READ ONLY" if driver.read_only else "READ WRITE")
    if driver.deferrable is not None:
        words.append("DEFERRABLE" if driver.deferrable else "NOT DEFERRABLE")
    return " ".join(words).encode()
