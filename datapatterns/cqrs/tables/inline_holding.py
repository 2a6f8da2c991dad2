"""What an append holds while it keeps projections inline: how they are kept, and their keys."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, Final, TypeAlias

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Connection,
    Select,
    Subquery,
    TableValuedAlias,
    Text,
    any_,
    bindparam,
    column,
    func,
    literal_column,
    select,
    true,
)
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.exc import DBAPIError

from datapatterns.cqrs.schema import projection_tables
from datapatterns.cqrs.tables.inline_locks import mode_lock
from datapatterns.errors import IsolationLevelError
from datapatterns.event_sourcing.appending.keeping_inline import KEPT_INLINE
from datapatterns.sql.fetching import Rows, fetch_rows

Kept: TypeAlias = tuple[tuple[str, int], ...]
"""The name and version of what is kept inline, in their order."""


class SwitchedError(Exception):
    """What is kept inline was changed just before its lock was there; ``kept`` holds from now."""

    def __init__(self, kept: Kept) -> None:
        super().__init__(kept)
        self.kept = kept


def hold_modes(conn: Connection, schema: str, names: list[str]) -> Kept:
    """Return which of ``names`` are kept inline, and let nobody change that any more.

    It may be older than the lock, as one round trip does both; the next statement looks again.
    """
    keys = sorted(mode_lock(schema, name) for name in names)
    return _kept(fetch_rows(conn, _hold_modes(schema), {"mode_keys": keys, "names": names}))


def check_modes(conn: Connection, schema: str, names: list[str], kept: Kept) -> None:
    """Make sure that ``kept`` is what is kept, after `hold_modes`.

    Raises:
        SwitchedError: It was, before the lock.
    """
    _check(fetch_rows(conn, _look_at_modes(schema), {"names": names}), kept)


def lock_keys(
    conn: Connection,
    schema: str,
    names: list[str],
    kept: Kept,
    locks: Mapping[str, list[int]],
) -> None:
    """Take the locks on keys, ``shared`` and ``exclusive``; and say what is kept.

    Raises:
        SwitchedError: Something else is.
    """
    said = ",".join(f"{name}:{version}" for name, version in kept)
    asked = {"names": names, "said": said, "setting": KEPT_INLINE, **locks}
    _check(fetch_rows(conn, _lock_keys(schema), asked), kept)


@contextmanager
def saying_no_more(conn: Connection) -> Iterator[None]:
    """Forget after the block what was said: whoever comes next in the transaction says it anew."""
    try:
        yield
    except DBAPIError:
        raise  # what is rolled back now takes with it what was said
    except Exception:
        say_nothing(conn)
        raise
    say_nothing(conn)


def say_nothing(conn: Connection) -> None:
    """Say that nothing is kept."""
    conn.execute(_SAY_NOTHING)


def _check(rows: Rows, kept: Kept) -> None:
    now = _kept(rows)
    if now != kept:
        raise SwitchedError(now)


def _kept(rows: Rows) -> Kept:
    kept = []
    for name, version, isolation, *_ in rows:
        if name is None:
            continue
        if isolation != "read committed":
            raise IsolationLevelError(found=isolation, needed="read committed")
        kept.append((name, version))
    return tuple(sorted(kept))


_DIALECT: Final = PGDialect_psycopg()  # type: ignore[no-untyped-call] # SQLAlchemy's own
_SAY_NOTHING: Final = select(func.set_config(KEPT_INLINE, "", True))


@cache
def _hold_modes(schema: str) -> str:
    keys = _unnested("mode_keys")
    taken = select(func.count(func.pg_advisory_xact_lock_shared(keys.c.key)).label("modes"))
    return _with_modes(schema, taken.subquery("taken"))


@cache
def _lock_keys(schema: str) -> str:
    # In the order of the lists, which are sorted: whoever appends once waits in a line, not a ring.
    shared, exclusive = _unnested("shared"), _unnested("exclusive")
    of_all = select(func.count(func.pg_advisory_xact_lock_shared(shared.c.key)))
    of_keys = select(func.count(func.pg_advisory_xact_lock(exclusive.c.key)))
    taken = select(
        func.set_config(
            bindparam("setting", type_=Text), bindparam("said", type_=Text), literal_column("true")
        ).label("said"),
        of_all.scalar_subquery().label("shared"),
        of_keys.scalar_subquery().label("exclusive"),
    )
    return _with_modes(schema, taken.subquery("taken"))


def _unnested(name: str) -> TableValuedAlias:
    keys = func.unnest(bindparam(name, type_=ARRAY(BigInteger)))
    return keys.table_valued(column("key", BigInteger), name=f"given_{name}").render_derived()


def _with_modes(schema: str, taken: Subquery) -> str:
    # What nobody asks for, the server leaves undone; so all of it is asked for.
    modes = _modes(schema).subquery("modes")
    return _compiled(select(*modes.c, *taken.c).select_from(taken.outerjoin(modes, true())))


@cache
def _look_at_modes(schema: str) -> str:
    return _compiled(_modes(schema))


def _compiled(statement: Select[*tuple[Any, ...]]) -> str:
    # By the driver's own cursor: Core's execute costs as much again as the round trip.
    return str(statement.compile(dialect=_DIALECT))


def _modes(schema: str) -> Select[*tuple[Any, ...]]:
    projections = projection_tables(schema).projections.c
    return select(
        projections.name,
        projections.version,
        func.current_setting(literal_column("'transaction_isolation'"), type_=Text).label(
            "isolation"
        ),
    ).where(
        projections.name == any_(bindparam("names", type_=ARRAY(Text))),
        projections.mode == literal_column("'inline'"),
        projections.status == literal_column("'live'"),
    )
