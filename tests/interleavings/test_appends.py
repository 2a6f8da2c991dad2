"""Of appends that expect one version one succeeds (E3); a repeated one takes place once (E4)."""

from functools import partial
from uuid import UUID

import pytest
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from datapatterns.errors import VersionConflictError
from datapatterns.event_sourcing import NEW_STREAM, NewEvent, StreamId
from datapatterns.testing.interleaving import Explorer, Fault, InterleavingError, Outcome
from tests.interleavings.basket import (
    PREEMPTIONS,
    WITHOUT_VERSIONS,
    Scanned,
    append,
    new_stream,
    store,
)
from tests.interleavings.clients import Client, until_answered
from tests.interleavings.designs.design import Tasks, is_commit
from tests.interleavings.guards import function_without

pytestmark = pytest.mark.postgres


async def append_async(engine: AsyncEngine, stream: StreamId, *, expected: int) -> int:
    async with engine.begin() as conn:
        appended = await conn.run_sync(
            partial(store.append, stream=stream, events=[Scanned(5)], expected_version=expected)
        )
        return appended.version


class Rivals:
    """Two that append to one stream, each sure of its version."""

    def __init__(self, plain: Engine, *, begun: int) -> None:
        self._plain, self._begun = plain, begun
        self.stream = new_stream()

    def prepare(self) -> StreamId:
        self.stream = new_stream()
        for version in range(self._begun):
            append(self._plain, self.stream, expected=version)
        return self.stream

    def one_has_won(self, outcome: Outcome) -> None:
        with self._plain.begin() as conn:
            versions = [event.version for event in store.read_stream(conn, self.stream)]
        new = len(versions) - self._begun
        assert versions == list(range(1, len(versions) + 1))
        assert new <= 1, f"{new} appends expected one version, and all took place"
        assert len(outcome.results) <= new, "an append was acknowledged and is not there"
        assert outcome.faults or len(outcome.results) == 1


@pytest.mark.parametrize("begun", [0, 1])
def test_of_two_appends_that_expect_one_version_one_succeeds(
    begun: int, explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    rivals = Rivals(plain, begun=begun)

    def meet() -> Tasks:
        act = partial(append, gated, rivals.prepare(), expected=begun)
        return {"one": act, "two": act}

    explored = explorer.explore(
        meet,
        invariant=rivals.one_has_won,
        max_preemptions=PREEMPTIONS,
        crash_at=is_commit,
        allowed_errors=(VersionConflictError,),
    )

    assert explored.exhausted
    assert explored.blocked_steps


def test_of_two_asynchronous_appends_one_succeeds(
    explorer: Explorer, gated_async: AsyncEngine, plain: Engine
) -> None:
    rivals = Rivals(plain, begun=1)

    def meet() -> Tasks:
        stream = rivals.prepare()

        async def act() -> int:
            return await append_async(gated_async, stream, expected=1)

        return {"one": act, "two": act}

    explored = explorer.explore(
        meet,
        invariant=rivals.one_has_won,
        max_preemptions=PREEMPTIONS,
        crash_at=is_commit,
        allowed_errors=(VersionConflictError,),
    )

    assert explored.exhausted


def test_without_the_comparison_of_versions_both_succeed(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    rivals = Rivals(plain, begun=1)

    def meet() -> Tasks:
        act = partial(append, gated, rivals.prepare(), expected=1)
        return {"one": act, "two": act}

    with (
        function_without(plain, *WITHOUT_VERSIONS, instead="true"),
        pytest.raises(InterleavingError, match="all took place"),
    ):
        explorer.explore(meet, invariant=rivals.one_has_won, allowed_errors=(VersionConflictError,))


def append_paid(engine: Engine, stream: StreamId, event_id: UUID) -> int:
    paid = NewEvent("interleaved.paid", {"cents": 5}, event_id=event_id)

    def attempt() -> int:
        with engine.begin() as conn:
            return store.append(conn, stream, [paid], expected_version=NEW_STREAM).version

    return until_answered(attempt)


def test_an_append_whose_commit_was_not_answered_can_be_tried_again(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    client = Client(gated, plain, append_paid)

    explored = explorer.explore(
        client.tasks,
        invariant=client.it_happened_once,
        crash_at=lambda _: True,
        faults=[Fault.REQUEST_LOST, Fault.REPLY_LOST],
        max_faults=2,
    )

    assert explored.exhausted
    assert explored.schedules > 8


def test_if_ids_were_not_compared_a_repeated_append_would_be_a_conflict(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    client = Client(gated, plain, append_paid)

    with (
        function_without(
            plain,
            "datapatterns.stored_append",
            "array_agg(e.event_id ORDER BY e.version) = p_ids",
            instead="false",
        ),
        pytest.raises(InterleavingError, match="VersionConflictError"),
    ):
        explorer.explore(
            client.tasks,
            invariant=client.it_happened_once,
            crash_at=is_commit,
            faults=[Fault.REPLY_LOST],
        )
