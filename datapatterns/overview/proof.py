"""What came of comparing one derived thing with what it is derived from."""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """What is known of it now.

    RIGHT: it is what its source says. WRONG: it is not, and stays so until it is mended.
    LEFT_OUT: it is not whole yet, so nothing could be compared. UNKNOWN: it could not be asked.
    """

    RIGHT = "right"
    WRONG = "wrong"
    LEFT_OUT = "left out"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What came of comparing one derived thing with what it is derived from.

    Attributes:
        pattern: What it is: ``view``, ``projection``, ``index``, ``cache``, ``event chain``,
            ``broadcast table`` or ``sharded table``.
        name: Its name among those.
        database: Where it is.
        verdict: What is known of it now.
        compared: How many rows, entries or events were compared; None if nothing was.
        differing: How many differ, as far as was counted.
        seconds: How long it took.
        reason: What differs, or why nothing was compared.
        advice: What mends it; a command where one does.
    """

    pattern: str
    name: str
    database: str
    verdict: Verdict
    compared: int | None = None
    differing: int = 0
    seconds: float = 0.0
    reason: str | None = None
    advice: str | None = None
