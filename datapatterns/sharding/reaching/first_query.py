"""Cursors that begin a transaction together with its first query, in one round trip."""

from typing import Any

from psycopg import AsyncCursor, Cursor
from psycopg.abc import Params, PQGen, Query
from psycopg.adapt import Transformer

from datapatterns.sharding.reaching.conversation import KNOWN_DRIVER, ask, can_begin


def cursor_factory(*, asynchronous: bool) -> dict[str, Any]:
    """Return what connections take to have such cursors; nothing if the driver is another one."""
    if not KNOWN_DRIVER:
        return {}
    return {"cursor_factory": _AsyncCursor if asynchronous else _Cursor}


class _BeginsWithQuery:
    """Beneath psycopg's cursors: the driver itself waits for the answer to BEGIN."""

    __slots__ = ()

    def _execute_gen(
        self: Any,
        query: Query,
        params: Params | None = None,
        *,
        prepare: bool | None = None,
        binary: bool | None = None,
    ) -> PQGen[None]:
        # Without values it may be several statements, and then they travel alone.
        if params and not binary and not self.closed and can_begin(self._conn):
            return _begun(self, query, params, prepare)
        gen: PQGen[None] = super()._execute_gen(  # type: ignore[misc] # psycopg's
            query, params, prepare=prepare, binary=binary
        )
        return gen


class _Cursor(_BeginsWithQuery, Cursor[Any]):
    __slots__ = ()


class _AsyncCursor(_BeginsWithQuery, AsyncCursor[Any]):
    __slots__ = ()


def _begun(cursor: Any, query: Query, params: Params, prepare: bool | None) -> PQGen[None]:  # noqa: ANN401, FBT001 -- as psycopg has it
    """Do as psycopg does, but for the wait."""
    cursor._reset()  # noqa: SLF001 -- the cursor is of this module
    if cursor._last_query is not query:  # noqa: SLF001
        cursor._last_query = None  # noqa: SLF001
        cursor._tx = Transformer(cursor)  # noqa: SLF001
    converted = cursor._query = cursor._convert_query(query, params)  # noqa: SLF001
    if not converted.params:  # the query has no place for the values: as without any
        yield from super(_BeginsWithQuery, cursor)._execute_gen(query, params, prepare=prepare)
        return
    result = yield from ask(cursor.connection, converted, prepare=prepare)
    cursor._set_results([result])  # noqa: SLF001
    cursor._last_query = query  # noqa: SLF001
