"""How hard the event store is tortured, and by whom."""

from dataclasses import dataclass
from enum import Enum
from typing import Final

CATEGORY: Final = "tortured"
HOT_STREAMS: Final = 200
"""The writers' streams; they meet there."""

WRITERS_NAME: Final = "torture-writer"
"""What the connections of writers are called, for those who kill them."""

UNFENCED_IMPORT: Final = "torture.unfenced_import"
"""A setting of the importers' sessions, which a control looks for."""

ENOUGH_SECONDS: Final = 120


class How(Enum):
    """How a reader follows the log; the last is wrong."""

    LOG = "pages of read_log"
    PAGES = "pages of read_log, each after the page before"
    MARK = "up to the published mark, under REPEATABLE READ"
    VISIBLE = "up to the highest position that shows"


@dataclass(frozen=True, slots=True)
class Plan:
    """Who does what.

    Attributes:
        events: How many are to be acknowledged, about.
        crews: Processes; each runs ``writers`` writers, an importer, and one who prepares, if the
            server knows prepared transactions.
        imported: How many of the events come by import, in hundredths.
        kills: Whether connections of writers are killed all the time.
        crashes: How often the server is killed and started again.
        start: The position before the first; the keys of fences begin anew every 2^31.
        seed: Of all chances, except those of the machine.
    """

    events: int
    crews: int = 2
    writers: int = 3
    readers: tuple[How, ...] = (How.LOG, How.LOG)
    imported: int = 20
    kills: bool = True
    crashes: int = 0
    start: int = 0
    seed: int = 1


def reader_name(number: int) -> str:
    """Return what a reader's checkpoint and connection are called."""
    return f"torture-reader-{number}"
