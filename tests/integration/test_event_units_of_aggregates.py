"""Units of work save aggregates with what they emit until the end of the transaction."""

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from datapatterns.errors import (
    VersionConflictError,
)
from datapatterns.event_sourcing import (
    ANY,
)
from tests.fixtures.event_units import A, B, C, Till, added, log, store


def test_an_aggregate_is_saved_with_what_it_emits_until_the_end(
    engine: Engine, session: Session
) -> None:
    unit = store.unit(session)
    till, other = unit.load(Till, "1"), Till("2")
    unit.save(other, metadata={"by": "ann"})
    till.pay(5)
    other.pay(7)
    assert unit.load(Till, "1") is till
    unit.load(Till, "idle")
    session.commit()

    assert [(e.stream.key, e.metadata) for e in log(engine)] == [("1", None), ("2", {"by": "ann"})]
    again = unit.load(Till, "1")
    assert (again.cents, again.version) == (5, 1)
    assert again is not till


def test_an_aggregate_that_was_saved_before_is_recognised(engine: Engine, session: Session) -> None:
    unit, till = store.unit(session), Till("1")
    till.pay(5)
    for _ in range(2):
        unit.save(till)
        session.commit()

    assert len(log(engine)) == 1
    assert unit.appended[till.stream].repeated


def test_a_stale_aggregate_is_a_conflict(engine: Engine, session: Session) -> None:
    unit = store.unit(session)
    till = unit.load(Till, "1")
    with engine.begin() as conn:
        other = store.load(conn, Till, "1")
        other.pay(1)
        store.save(conn, other)
    till.pay(5)

    with pytest.raises(VersionConflictError):
        session.commit()
    session.rollback()
    unit.load(Till, "1").pay(5)
    session.commit()

    with engine.begin() as conn:
        assert store.load(conn, Till, "1").cents == 6


def test_what_cannot_follow_in_one_unit_is_refused_at_once(session: Session) -> None:
    unit = store.unit(session)
    unit.append(A, added(2), expected_version=3)
    till = unit.load(Till, "1")
    unit.append(A, added(), expected_version=5)
    unit.append(A, added(), expected_version=ANY)
    unit.append(B, added(), expected_version=ANY)

    for refused, expected in ((A, 3), (A, 5), (B, 1), (till.stream, ANY)):
        with pytest.raises(ValueError, match="unit"):
            unit.append(refused, added(), expected_version=expected)
    with pytest.raises(ValueError, match="another object"):
        unit.save(Till("1"))
    with pytest.raises(ValueError, match="nothing to append"):
        unit.append(C, [], expected_version=ANY)
