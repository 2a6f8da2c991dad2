"""How far a read model in Redis is, on whose behalf it was written, and whether it is whole.

The checkpoint is a hash beside the data. It is the truth: a Redis that restarted from an older
dump holds older data and the older checkpoint, and going on from there is right. It says

- ``build``: which build the data belong to, as PostgreSQL knows it; any other is not ours;
- ``epoch``: the highest lease that has written; a lower one is refused;
- ``position``: how far the data are;
- ``witness``: by which events the log can be recognised;
- ``structures``: how many there are, whose sizes are in a hash of their own;
- ``target``: only while a build is not whole; readers are told;
- ``clearing``: only while leftovers of an earlier build are removed;
- ``torn``: only inside a script, so it shows if one broke off in the middle, and on data of which
  something has gone.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from datapatterns.event_sourcing.events import Position

FIELDS: Final = ("build", "position", "target", "clearing", "torn", "structures")
"""What `read_checkpoint` takes, in this order."""


class LaterEpochError(Exception):
    """Redis has been written under a later lease than the caller's."""


class DamagedError(Exception):
    """Something was taken out of the read model, or put into it, by somebody else."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """On whose behalf Redis is written: which build, under which lease."""

    build: UUID
    epoch: int

    @property
    def arguments(self) -> tuple[str, str]:
        """The ticket as the scripts take it."""
        return str(self.build), str(self.epoch)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What the hash beside the data says.

    Attributes:
        whole: The build has reached its target, and no script broke off.
        structures: How many structures there are.
    """

    build: str
    position: Position
    whole: bool
    structures: int


def read_checkpoint(raw: Sequence[Any]) -> Checkpoint | None:
    """Return the checkpoint from what the hash has for `FIELDS`, None if it holds none."""
    build, position, *unfinished, structures = (
        None if value is None else decoded(value) for value in raw
    )
    # Not only ours can write there: what we cannot have written is none.
    if build is None or position is None or not is_number(position):
        return None
    counted = int(structures) if structures is not None and is_number(structures) else 0
    whole = all(mark is None for mark in unfinished)
    return Checkpoint(build, Position(int(position)), whole, counted)


def decoded(answer: Any) -> str:  # noqa: ANN401 -- bytes or text, as the client is configured
    """Return what Redis says as text."""
    return answer.decode(errors="replace") if isinstance(answer, bytes) else str(answer)


def is_of_another_type(answer: object) -> bool:
    """Return whether Redis found something of another type than what was asked for.

    Raises:
        Exception: The answer is another error.
    """
    if not isinstance(answer, Exception):
        return False
    if "WRONGTYPE" not in str(answer):
        raise answer
    return True


def is_number(text: str) -> bool:
    """Return whether ``text`` is a number as we write it."""
    return re.fullmatch(r"[0-9]{1,19}", text, re.ASCII) is not None
