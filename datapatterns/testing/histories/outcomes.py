"""What an error tells about the transaction that it ended."""

from collections.abc import Iterator
from typing import Literal

from datapatterns.errors import OutcomeUnknownError

_ROLLED_BACK = ("40", "23")
_COMPLETION_UNKNOWN = "40003"


def outcome_of(error: BaseException, *, commit_sent: bool) -> Literal["fail", "info"]:
    """Return ``fail`` if the transaction cannot have been committed, else ``info``.

    Before its COMMIT is sent, nothing is committed. After that the server must have said so, by a
    SQLSTATE of class 40 (it was rolled back; but not 40003) or 23 (a deferred constraint). Any
    other error proves nothing, and neither does a cancellation. To call a failure unknown hides
    an anomaly at worst; the contrary would invent one.
    """
    if any(isinstance(each, OutcomeUnknownError) for each in _chain(error)):
        return "info"
    if not commit_sent:
        return "fail"
    sqlstate = _sqlstate(error) or ""
    if sqlstate.startswith(_ROLLED_BACK) and sqlstate != _COMPLETION_UNKNOWN:
        return "fail"
    return "info"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all that led to it, also where nobody wrote ``from`` or tasks failed."""
    waiting, seen = [error], set[int]()
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += [led for led in (each.__cause__, each.__context__) if led is not None]
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions


def _sqlstate(error: BaseException) -> str | None:
    # SQLAlchemy keeps the driver's error under `orig`; psycopg's has the state itself.
    sqlstate = getattr(getattr(error, "orig", error), "sqlstate", None)
    return sqlstate if isinstance(sqlstate, str) else None
