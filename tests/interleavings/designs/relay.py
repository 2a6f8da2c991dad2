"""An outbox that several relays empty: drained means that nothing is left (P8)."""

from collections.abc import Callable
from functools import partial

from redis import Redis
from sqlalchemy import Engine, text

from datapatterns.testing.interleaving import Outcome
from tests.interleavings.designs.design import Design, Stage, Tasks

TABLES = "CREATE TABLE outbox (id bigserial, key text NOT NULL)"
SET_UP = "DELETE FROM outbox; INSERT INTO outbox (key) VALUES ('x')"

DUE = text("SELECT id, key FROM outbox ORDER BY id FOR UPDATE")
DUE_AND_FREE = text("SELECT id, key FROM outbox ORDER BY id FOR UPDATE SKIP LOCKED")


def relay_once(engine: Engine, redis: Redis, *, skip_locked: bool = True) -> int:
    """Deliver what is due; return how much."""
    with engine.begin() as conn:
        due = conn.execute(DUE_AND_FREE if skip_locked else DUE).all()
        for row in due:
            redis.delete(row.key, f"{row.key}:lease")
        if due:
            ids = [row.id for row in due]
            conn.execute(text("DELETE FROM outbox WHERE id = ANY(:ids)"), {"ids": ids})
    return len(due)


def drain(stage: Stage, *, skip_locked: bool) -> int:
    """Deliver until nothing comes any more; return how much is left."""
    while relay_once(stage.engine, stage.redis, skip_locked=skip_locked):
        pass
    with stage.engine.begin() as conn:
        return int(conn.execute(text("SELECT count(*) FROM outbox")).scalar_one())


def _meeting(*, skip_locked: bool) -> Callable[[Stage], Tasks]:
    def tasks(stage: Stage) -> Tasks:
        return {
            "relay": partial(relay_once, stage.engine, stage.redis, skip_locked=skip_locked),
            "drain": partial(drain, stage, skip_locked=skip_locked),
        }

    return tasks


def _is_drained(_stage: Stage, outcome: Outcome) -> None:
    left = outcome.results["drain"]
    assert left == 0, f"drained, and {left} left"


DESIGNS = [
    Design(
        "SKIP LOCKED taken for drained",
        "P8",
        SET_UP,
        _meeting(skip_locked=True),
        _is_drained,
        wrong=True,
    ),
    Design("drained by FOR UPDATE", "P8", SET_UP, _meeting(skip_locked=False), _is_drained),
]
