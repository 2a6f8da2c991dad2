"""What an exception means to the person at the prompt: one line, and an exit code."""

import errno
from dataclasses import dataclass

from alembic.util import CommandError
from redis import RedisError
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from datapatterns.connecting import library_error
from datapatterns.errors import (
    ConfigurationError,
    ConflictError,
    CorruptionError,
    DataPatternsError,
    OutcomeUnknownError,
    UnavailableError,
)

EXIT_CODES: tuple[tuple[type[Exception], int], ...] = (
    (ConfigurationError, 2),  # click's own code for wrong usage
    (CommandError, 2),
    (ConflictError, 3),
    (UnavailableError, 4),
    (CorruptionError, 5),
    (OutcomeUnknownError, 6),
)
UNEXPECTED = 1
_RAISED = "P0001"
_NOT_THERE = {"3F000", "42703", "42883", "42P01"}  # a schema, column, function or table

_OF_FILES = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EEXIST,
    errno.EFBIG,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
    errno.ETXTBSY,
}


@dataclass(frozen=True, slots=True)
class Failure:
    """What to print of an exception, and the exit code.

    Attributes:
        name: What programs may look for.
    """

    message: str
    name: str
    notes: tuple[str, ...]
    exit_code: int


def failure(error: BaseException) -> Failure:
    """Return what to say of ``error``; no statement, parameter or password is in it."""
    known = error if isinstance(error, DataPatternsError) else library_error(error) or error
    notes = tuple(getattr(error, "__notes__", ()))
    code = next((code for family, code in EXIT_CODES if isinstance(known, family)), UNEXPECTED)
    if isinstance(known, DBAPIError) and getattr(known.orig, "sqlstate", None) in _NOT_THERE:
        code = 2
        notes = (*notes, "are the tables up to date? Ask: datapatterns migrate check")
    hint = isinstance(known, DBAPIError) and _hint(known)
    if hint:
        code = 2  # our functions say in it what to change
        notes = (*notes, hint)
    if isinstance(known, OSError) and known.errno in _OF_FILES:
        code = 2
        notes = (*notes, "look at the path, your rights and the space left; then run it again")
    if code == UNEXPECTED:
        notes = (*notes, "this was not foreseen; --debug shows where it comes from")
    return Failure(_message(known), type(known).__name__, notes, code)


def _hint(error: DBAPIError) -> str | None:
    """Return the advice of what raises errors in the database, such as our functions."""
    if getattr(error.orig, "sqlstate", None) != _RAISED:
        return None
    hint: str | None = getattr(getattr(error.orig, "diag", None), "message_hint", None)
    return hint


def _message(error: BaseException) -> str:
    if isinstance(error, DBAPIError):  # its own text quotes statement and parameters
        said = next(iter(str(error.orig).strip().splitlines()), "nothing")
        return f"the database said: {said}"
    if isinstance(error, OSError) and error.errno in _OF_FILES:
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    if isinstance(error, DataPatternsError | CommandError):
        return str(error)
    if isinstance(error, RedisError | SQLAlchemyError):
        return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    return f"{type(error).__name__}: {error}"
