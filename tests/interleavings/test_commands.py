"""A command is carried out once, on what is there."""

from uuid import uuid4

import pytest
from sqlalchemy import Engine

from datapatterns.event_sourcing import CommandPolicy, Retry, StreamId
from datapatterns.testing.interleaving import Explorer, Fault, InterleavingError, Outcome
from tests.interleavings.basket import PREEMPTIONS, WITHOUT_VERSIONS, Basket, Scanned, store
from tests.interleavings.designs.design import Tasks, is_commit
from tests.interleavings.guards import function_without

pytestmark = pytest.mark.postgres


class Commands:
    """Two carry out one command each; the second of them has seen what the first one did."""

    def __init__(self, gated: Engine, plain: Engine, *, lock: bool, begun: bool) -> None:
        self._gated, self._plain, self._begun = gated, plain, begun
        self._policy = CommandPolicy(lock=lock, retry=Retry(delay_seconds=0))
        self._key = ""
        self.decided = 0

    def tasks(self) -> Tasks:
        self._key, self.decided = uuid4().hex, 0
        if self._begun:
            with self._plain.begin() as conn:
                store.append(conn, StreamId("basket", self._key), [Scanned(1)], expected_version=0)
        return {"one": self._double, "two": self._double}

    def _double(self) -> int:
        handled = store.handle(self._gated, Basket, self._key, self._decide, policy=self._policy)
        return handled.sourced.total

    def _decide(self, basket: Basket) -> None:
        self.decided += 1
        basket.scan(basket.total + 1)

    def each_saw_the_other_or_was_seen(self, outcome: Outcome) -> None:
        with self._plain.begin() as conn:
            basket = store.load(conn, Basket, self._key)
        start = 1 if self._begun else 0
        totals = [2 * start + 1, 4 * start + 3]
        assert basket.version == self._begun + 2, f"two commands, but version {basket.version}"
        assert sorted(outcome.results.values()) == totals, f"decided on {outcome.results}"
        assert not outcome.errors


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("lock", [False, True])
def test_two_commands_to_one_stream_are_decided_one_after_the_other(
    begun: bool,  # noqa: FBT001 -- parameters of the test
    lock: bool,  # noqa: FBT001
    explorer: Explorer,
    gated: Engine,
    plain: Engine,
) -> None:
    commands = Commands(gated, plain, lock=lock, begun=begun)
    in_vain = 0

    def check(outcome: Outcome) -> None:
        nonlocal in_vain
        commands.each_saw_the_other_or_was_seen(outcome)
        in_vain += commands.decided - 2

    explored = explorer.explore(commands.tasks, invariant=check, max_preemptions=PREEMPTIONS - 1)

    assert explored.exhausted
    assert (in_vain == 0) is lock


def test_a_command_whose_commit_is_lost_is_carried_out_once(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    commands = Commands(gated, plain, lock=False, begun=True)

    explored = explorer.explore(
        commands.tasks,
        invariant=commands.each_saw_the_other_or_was_seen,
        max_preemptions=PREEMPTIONS - 2,
        crash_at=is_commit,
        faults=[Fault.REQUEST_LOST, Fault.REPLY_LOST],
    )

    assert explored.exhausted


def test_without_the_comparison_of_versions_commands_do_not_see_each_other(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    commands = Commands(gated, plain, lock=False, begun=True)

    with (
        function_without(plain, *WITHOUT_VERSIONS, instead="true"),
        pytest.raises(InterleavingError, match=r"decided on|two commands"),
    ):
        explorer.explore(commands.tasks, invariant=commands.each_saw_the_other_or_was_seen)
