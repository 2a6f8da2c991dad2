"""How one thing stands, in the same words for all patterns."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

LATE_SECONDS: Final = 60.0
"""What is behind for longer is late, unless its declaration says otherwise."""


class Concern(StrEnum):
    """Who has to do something.

    FINE: nobody. WAITING: nobody yet, it is being worked at or is behind as it may be.
    WRONG: somebody; nothing here mends itself.
    """

    FINE = "fine"
    WAITING = "waiting"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How one thing stands.

    Attributes:
        pattern: What it is: ``server``, ``log``, ``change log``, ``view``, ``projection``,
            ``index``, ``cache``, ``shard`` or ``move``.
        name: Its name among those.
        database: Where: ``main``, ``read_models``, a shard's name, or ``redis``.
        state: How it stands, in the words of its pattern.
        concern: Whether somebody has to do something.
        stale_seconds: For how long at most the oldest change is missing; None if it cannot be
            stale.
        pending: How many changes, events or rows are missing, as far as was counted.
        owner: Who works at it.
        reason: What is in the way, if something is.
        advice: What mends it; a command where one does.
    """

    pattern: str
    name: str
    database: str
    state: str
    concern: Concern = Concern.FINE
    stale_seconds: float | None = None
    pending: int | None = None
    owner: str | None = None
    reason: str | None = None
    advice: str | None = None


def lateness(stale_seconds: float, pending: int, late_seconds: float) -> Concern:
    """Return whether what is behind so far is so as it may be."""
    if stale_seconds > late_seconds:
        return Concern.WRONG
    return Concern.WAITING if pending or stale_seconds else Concern.FINE
