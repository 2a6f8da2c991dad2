"""A move of one bucket, and how far it is."""

from dataclasses import dataclass
from typing import Literal, TypeAlias
from uuid import UUID

MoveState: TypeAlias = Literal[
    "planned",
    "capturing",
    "copying",
    "catching_up",
    "cut",
    "handed_over",
    "cleaned",
    "aborted",
]
"""How far a move is; the last two are its ends.

Up to ``cut`` the source owns the bucket, and the move can be undone. In ``cut`` only the source
knows. From ``handed_over`` on the target owns it.
"""


@dataclass(frozen=True, slots=True)
class Move:
    """One bucket on its way, as the control database knows it.

    Attributes:
        move_id: Which move.
        group: The name of the entity group.
        group_id: What the servers call the group.
        bucket: Which bucket.
        source: The shard that had it.
        target: The shard that gets it.
        state: How far it is.
        is_leased: Whether a worker is at it, or was a moment ago.
        copied_rows: How many rows were copied.
        copied_bytes: How many bytes those were on the wire.
        pause_ms: How long writers of the bucket had to wait at the cut.
        error: What its last worker ended with, if not with success.
    """

    move_id: UUID
    group: str
    group_id: int
    bucket: int
    source: str
    target: str
    state: MoveState
    is_leased: bool
    copied_rows: int | None
    copied_bytes: int | None
    pause_ms: float | None
    error: str | None


@dataclass(frozen=True, slots=True)
class MoveProgress:
    """What a worker tells of a move under way.

    Attributes:
        move: The move, in the state that it has come to.
        rows: How many rows are on the target by now.
        bytes: How many bytes those were on the wire.
        dirty: How many rows have changed meanwhile, as of the last look.
    """

    move: Move
    rows: int = 0
    bytes: int = 0
    dirty: int = 0
