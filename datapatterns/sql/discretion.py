"""Engines whose errors do not quote rows.

What fails is logged, and rows are no business of logs. SQLAlchemy can hide the parameters of a
statement; PostgreSQL quotes rows in the details of an error, too: of a constraint that they
violate, of a line that COPY cannot read.
"""

import psycopg
from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError


def discreet(engine: Engine) -> Engine:
    """Let errors of ``engine`` say what PostgreSQL said without details; return the engine.

    The details stay where only programs look: ``error.orig.diag``. A message itself may quote a
    single value that has no meaning for its type, as in ``invalid input syntax``.
    """
    event.listen(engine, "handle_error", _leave_out_details)
    return engine


def _leave_out_details(context: ExceptionContext) -> None:
    error, wrapped = context.original_exception, context.sqlalchemy_exception
    if not isinstance(error, psycopg.Error) or error.diag.message_primary is None:
        return
    whole = str(error)
    said = error.diag.message_primary
    if error.diag.message_hint:
        said += f"\nHINT:  {error.diag.message_hint}"
    error.args = (said,)
    if isinstance(wrapped, DBAPIError):
        wrapped.args = tuple(
            part.replace(whole, said) if isinstance(part, str) else part for part in wrapped.args
        )
