"""Run a plan of moves in rounds, in which no shard takes part twice."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress

from datapatterns.errors import MoveBusyError, StaleMoveError
from datapatterns.sharding.moving.move import Move
from datapatterns.sharding.moving.mover import Mover
from datapatterns.sharding.seeing.rebalance_plan import RebalancePlan
from datapatterns.sharding.seeing.rebalancing import BucketMove


def run_plan(mover: Mover, plan: RebalancePlan, *, at_once: int) -> list[Move]:
    """Carry a plan out; return the moves that it took, as they have ended.

    A bucket that has moved since the plan was made stays where it is. What a round has moved is
    cleaned after the next one: by then, nobody with an old map asks the source any more.

    Raises:
        Exception: What the first move that failed raised, when its round was done.
    """
    group = mover.access.group(plan.group)
    done: list[Move] = []
    to_clean: list[Move] = []

    def move(planned: BucketMove) -> Move | None:
        try:
            move_id = mover.plan(
                group, planned.bucket, source=planned.source, target=planned.target
            )
        except StaleMoveError:
            return None
        return mover.run(move_id, clean_up=False)

    with ThreadPoolExecutor(at_once, thread_name_prefix="datapatterns-move") as pool:
        for planned in plan.rounds(at_once=at_once):
            futures = [pool.submit(move, each) for each in planned]
            wait(futures)
            done += _clean(mover, to_clean)
            to_clean = _moved(futures)
            for future in futures:
                future.result()
    done += _clean(mover, to_clean)
    return done


def _moved(futures: Sequence[Future[Move | None]]) -> list[Move]:
    """Return what went well."""
    ended = [future.result() for future in futures if future.exception() is None]
    return [move for move in ended if move is not None]


def _clean(mover: Mover, moves: Sequence[Move]) -> list[Move]:
    cleaned = []
    for move in moves:
        with suppress(MoveBusyError):  # somebody else resumes moves, and cleans this one
            cleaned.append(mover.run(move.move_id))
    return cleaned
