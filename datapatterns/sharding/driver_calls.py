"""Call the driver itself, whether it is the one for threads or the one for asyncio."""

from inspect import isawaitable
from typing import Any

from sqlalchemy.util import await_only


def settled(outcome: Any) -> Any:  # noqa: ANN401 -- the driver's, of either kind
    """Return what a call of the driver gave; wait for it, if the driver is that of asyncio."""
    return await_only(outcome) if isawaitable(outcome) else outcome
