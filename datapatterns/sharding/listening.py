"""Whose listeners hear of what is executed: ours need not, where this library knows what it is."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine

_LIBRARY = __name__.partition(".")[0]


def others_listen(engine: Engine) -> bool:
    """Return whether somebody else wants to hear of transactions and statements of an engine."""
    heard = engine.dispatch
    events = (
        heard.engine_connect,
        heard.begin,
        heard.rollback,
        heard.before_execute,
        heard.after_execute,
        heard.before_cursor_execute,
        heard.after_cursor_execute,
        engine.dialect.dispatch.do_execute,
    )
    return not all(_is_ours(listener) for listeners in events for listener in listeners)


def _is_ours(listener: Callable[..., Any]) -> bool:
    # SQLAlchemy wraps those that return nothing; then nobody knows.
    module = getattr(listener, "__module__", None)
    return isinstance(module, str) and module.partition(".")[0] == _LIBRARY
