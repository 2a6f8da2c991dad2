"""Keys that move while they are written: after the move every row is with its owner (S4, S8)."""

from collections.abc import Callable
from functools import partial

from sqlalchemy import text

from datapatterns.testing.interleaving import Outcome
from tests.interleavings.designs.design import Design, Stage, Tasks

TABLES = """
CREATE TABLE shard_a (key int PRIMARY KEY);
CREATE TABLE shard_b (key int PRIMARY KEY);
CREATE TABLE route (owner text NOT NULL);
"""
SET_UP = """
DELETE FROM shard_a; DELETE FROM shard_b; DELETE FROM route;
INSERT INTO shard_a VALUES (1); INSERT INTO route VALUES ('shard_a')
"""

ROUTE = text("SELECT owner FROM route")
ROUTE_FOR_SHARE = text("SELECT owner FROM route FOR SHARE")
ROUTE_FOR_UPDATE = text("SELECT owner FROM route FOR UPDATE")
INSERT = {
    "shard_a": text("INSERT INTO shard_a VALUES (:key)"),
    "shard_b": text("INSERT INTO shard_b VALUES (:key)"),
}
COPY = text("INSERT INTO shard_b SELECT key FROM shard_a ON CONFLICT DO NOTHING")
SWITCH = text("UPDATE route SET owner = 'shard_b'")


def write(stage: Stage, key: int, *, locks: bool) -> None:
    with stage.engine.begin() as conn:
        owner = conn.execute(ROUTE_FOR_SHARE if locks else ROUTE).scalar_one()
        conn.execute(INSERT[owner], {"key": key})


def move(stage: Stage, *, locks: bool) -> None:
    with stage.engine.begin() as conn:
        if locks:
            conn.execute(ROUTE_FOR_UPDATE)
        conn.execute(COPY)
        conn.execute(SWITCH)


def _meeting(*, locks: bool) -> Callable[[Stage], Tasks]:
    return lambda stage: {
        "writer2": partial(write, stage, 2, locks=locks),
        "writer3": partial(write, stage, 3, locks=locks),
        "mover": partial(move, stage, locks=locks),
    }


def _the_owner_has_all(stage: Stage, _outcome: Outcome) -> None:
    rows = stage.column("SELECT key FROM shard_b")
    assert rows == [1, 2, 3], f"written were 1, 2 and 3; their owner has {rows}"


DESIGNS = [
    Design(
        "route read outside the write's lock",
        "S4 S8",
        SET_UP,
        _meeting(locks=False),
        _the_owner_has_all,
        wrong=True,
    ),
    Design(
        "route read FOR SHARE, moved FOR UPDATE",
        "S4 S8",
        SET_UP,
        _meeting(locks=True),
        _the_owner_has_all,
        everyday_preemptions=1,
    ),
]
