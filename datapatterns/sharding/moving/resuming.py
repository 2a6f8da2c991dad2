"""Moves whose worker died go on in the hands of another one."""

from collections.abc import Collection
from contextlib import suppress
from typing import Final, get_args
from uuid import UUID

from datapatterns.errors import MoveBusyError
from datapatterns.sharding.moving.move import Move, MoveState
from datapatterns.sharding.moving.mover import Mover

ALL_STATES: Final = frozenset[MoveState](get_args(MoveState))
FROM_THE_CUT_ON: Final = frozenset[MoveState]({"cut", "handed_over"})


def resume(mover: Mover, *, wanted: Collection[MoveState]) -> list[Move]:
    """Take up the moves in these states that nobody works at; return them as they have ended.

    Buckets that may be nobody's come first, and none of them waits for the cleaning of another.

    Raises:
        Exception: What the first move that failed raised, when all have been tried.
    """
    free = [m for m in mover.moves(live=True) if m.state in wanted and not m.is_leased]
    errors: dict[UUID, Exception] = {}
    ended: list[Move] = []
    urgent = [move for move in free if move.state == "cut"]
    for number, move in enumerate([*urgent, *free]):
        is_urgent = number < len(urgent)
        if move.move_id in errors:
            continue
        try:
            with suppress(MoveBusyError):  # another process was faster
                done = mover.run(move.move_id, clean_up=not is_urgent)
                ended += [] if is_urgent else [done]
        except Exception as error:  # noqa: BLE001 -- raised below; the others must not wait for it
            errors[move.move_id] = error
    for first in errors.values():
        raise first
    return ended
