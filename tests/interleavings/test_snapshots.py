"""With snapshots or without, the same state (E9)."""

from uuid import uuid4

import pytest
from sqlalchemy import Engine, text

from datapatterns.errors import VersionConflictError
from datapatterns.testing.interleaving import Explorer, InterleavingError, Outcome
from tests.interleavings.basket import PREEMPTIONS, Basket, store
from tests.interleavings.designs.design import Tasks, is_commit
from tests.interleavings.guards import statements_without

pytestmark = pytest.mark.postgres


class Baskets:
    """Two change a basket and save snapshots of it; of one, some events are rolled back."""

    def __init__(self, gated: Engine, plain: Engine) -> None:
        self._gated, self._plain = gated, plain
        self._key = ""

    def tasks(self) -> Tasks:
        self._key = uuid4().hex
        with self._plain.begin() as conn:
            basket = Basket(self._key)
            basket.scan(1)
            store.save(conn, basket)
        return {"shopper": self._shop, "hesitant": self._hesitate}

    def _shop(self) -> None:
        with self._gated.begin() as conn:
            basket = store.load(conn, Basket, self._key)
            basket.scan(10)
            store.save(conn, basket)
        with self._gated.begin() as conn:
            store.save_snapshot(conn, basket)

    def _hesitate(self) -> None:
        """Save, change one's mind, and save a snapshot of what never was."""
        with self._gated.connect() as conn:
            basket = store.load(conn, Basket, self._key)
            basket.scan(100)
            store.save(conn, basket)
            conn.rollback()
            with conn.begin():
                store.save_snapshot(conn, basket)

    def snapshots_change_nothing(self, _outcome: Outcome) -> None:
        with self._plain.begin() as conn:
            with_snapshots = store.load(conn, Basket, self._key).total
            conn.execute(text("DELETE FROM datapatterns.snapshot"))
            folded = store.load(conn, Basket, self._key).total
        assert with_snapshots == folded, (
            f"loaded by a snapshot {with_snapshots}, folded from all events {folded}"
        )


@pytest.mark.parametrize("crashes", [False, True])
def test_a_state_is_the_same_with_snapshots_and_without(
    crashes: bool,  # noqa: FBT001 -- a parameter of the test
    explorer: Explorer,
    gated: Engine,
    plain: Engine,
) -> None:
    baskets = Baskets(gated, plain)

    explored = explorer.explore(
        baskets.tasks,
        invariant=baskets.snapshots_change_nothing,
        max_preemptions=PREEMPTIONS - 2 * crashes,
        crash_at=is_commit if crashes else None,
        allowed_errors=(VersionConflictError,),
    )

    assert explored.exhausted


def test_a_snapshot_that_only_names_a_version_would_keep_what_was_rolled_back(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    baskets = Baskets(gated, plain)

    with (
        statements_without(gated, " AND datapatterns.event_all.position = %(position)s::BIGINT"),
        pytest.raises(InterleavingError, match="loaded by a snapshot"),
    ):
        explorer.explore(
            baskets.tasks,
            invariant=baskets.snapshots_change_nothing,
            allowed_errors=(VersionConflictError,),
        )
