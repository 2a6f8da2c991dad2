"""One seat is left, and two people book it at the same time; who does not lock, sells it twice."""

from collections.abc import Callable

import pytest
from sqlalchemy import Engine, text

from datapatterns.testing import Explorer, Outcome


def one_seat_is_sold(outcome: Outcome) -> None:
    assert sum(outcome.results.values()) == 1, "one seat, sold twice"


@pytest.mark.parametrize(
    "look",
    ["SELECT seats FROM show", "SELECT seats FROM show FOR UPDATE"],
    ids=["without_lock", "locked"],
)
def test_two_people_book_the_last_seat(
    datapatterns_explorer: Explorer, datapatterns_engine: Engine, look: str
) -> None:
    engine = datapatterns_explorer.engine()

    def book() -> bool:
        with engine.begin() as conn:
            seats = conn.scalar(text(look))
            if seats:
                conn.execute(text("UPDATE show SET seats = :left"), {"left": seats - 1})
            return bool(seats)

    def two_buyers() -> dict[str, Callable[[], bool]]:
        with datapatterns_engine.begin() as conn:
            conn.execute(text("DROP TABLE IF EXISTS show"))
            conn.execute(text("CREATE TABLE show AS SELECT 1 AS seats"))
        return {"alice": book, "bob": book}

    datapatterns_explorer.explore(two_buyers, invariant=one_seat_is_sold)
