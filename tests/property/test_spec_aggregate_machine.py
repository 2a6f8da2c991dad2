"""Random commands find what is wrong with an aggregate, and nothing in one that is right."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from datapatterns.errors import EventDataError
from datapatterns.event_sourcing import Aggregate, EventTypes, applies, every
from datapatterns.testing import Call, SpecError, aggregate_machine
from tests.fixtures.tills import DECIDERS, Closed, Named, Scanned
from tests.fixtures.tills import types as till_types

types = EventTypes()


@types.event("account.deposited")
@dataclass(frozen=True)
class Deposited:
    cents: int


@types.event("account.withdrawn")
@dataclass(frozen=True)
class Withdrawn:
    cents: int


@types.event("account.held")
@dataclass(frozen=True)
class Held:
    cents: int


Event = Deposited | Withdrawn | Held


class Account(Aggregate, category="account", snapshot=every(10)):
    balance = 0
    held = 0
    log: list[int] = []  # noqa: RUF012 -- each object gets a copy

    def deposit(self, cents: int) -> None:
        self.emit(Deposited(cents))

    def withdraw(self, cents: int) -> None:
        if cents > self.balance - self.held:
            raise ValueError("not enough")
        self.emit(Withdrawn(cents))

    def hold(self, cents: int) -> None:
        if cents > self.balance - self.held:
            raise ValueError("not enough")
        self.emit(Held(cents))

    @applies
    def deposited(self, e: Deposited) -> None:
        self.balance += e.cents
        self.log.append(e.cents)

    @applies
    def withdrawn(self, e: Withdrawn) -> None:
        self.balance -= e.cents

    @applies
    def was_held(self, e: Held) -> None:
        self.held += e.cents


def valid(account: Account) -> bool:
    return 0 <= account.held <= account.balance


cents = st.integers(0, 100)
calls = st.builds(Call, st.sampled_from([Account.deposit, Account.withdraw, Account.hold]), cents)


def run(machine: type[RuleBasedStateMachine], *, always_the_same: bool = False) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            machine.TestCase.settings,
            stateful_step_count=15,
            database=None,
            derandomize=always_the_same,
        ),
    )


def test_an_aggregate_that_is_right_passes() -> None:
    run(aggregate_machine(Account, calls, valid=valid, types=types))


def failure(machine: type[RuleBasedStateMachine]) -> str:
    with pytest.raises(SpecError) as failing:
        run_state_machine_as_test(
            machine,
            settings=settings(
                machine.TestCase.settings,
                max_examples=300,
                stateful_step_count=15,
                derandomize=True,
            ),
        )
    return str(failing.value)


def test_a_broken_rule_of_the_domain_is_told_with_its_shortest_history() -> None:
    class Overdrawn(Account, category="overdrawn"):
        def withdraw(self, cents: int) -> None:
            if cents > self.balance:  # forgets what is held
                raise ValueError("not enough")
            self.emit(Withdrawn(cents))

    forgetful = st.builds(
        Call, st.sampled_from([Overdrawn.deposit, Overdrawn.withdraw, Overdrawn.hold]), cents
    )

    assert failure(aggregate_machine(Overdrawn, forgetful, valid=valid, types=types)) == (
        "the state is invalid\n"
        "history   Deposited(cents=1)\n"
        "          Held(cents=1)\n"
        "          Withdrawn(cents=1)"
    )


def test_a_rule_may_assert() -> None:
    def never_rich(account: Account) -> None:
        assert account.balance < 50, "too rich"

    assert "the state is invalid: too rich" in failure(
        aggregate_machine(Account, calls, valid=never_rich, types=types)
    )


def test_state_that_a_command_changes_without_an_event_is_found() -> None:
    class Direct(Account, category="direct"):
        def deposit(self, cents: int) -> None:
            super().deposit(cents)
            self.log.append(0)

    message = failure(aggregate_machine(Direct, st.just(Call(Direct.deposit, 1)), types=types))

    assert "a replay of what was stored gives another state" in message
    assert "when      deposit(1)" in message


class Ledger:
    """The functional twin; its state is a tuple of balance and what is held."""

    initial = (0, 0)

    def decide(self, command: Event, state: tuple[int, int]) -> Iterator[Event]:
        balance, held = state
        if not isinstance(command, Deposited) and command.cents > balance - held:
            raise KeyError("not enough")
        yield command

    def evolve(self, state: tuple[int, int], event: Event) -> tuple[int, int]:
        balance, held = state
        match event:
            case Deposited(cents):
                return balance + cents, held
            case Withdrawn(cents):
                return balance - cents, held
            case Held(cents):
                return balance, held + cents


events = st.builds(Deposited, cents) | st.builds(Withdrawn, cents) | st.builds(Held, cents)


def test_a_decider_that_is_right_passes() -> None:
    run(
        aggregate_machine(
            Ledger(),
            events,
            valid=lambda state: 0 <= state[1] <= state[0],
            refused=(KeyError,),
            snapshot_as=tuple[int, int],
            types=types,
        )
    )


def test_a_refusal_that_was_not_announced_is_a_failure() -> None:
    with pytest.raises(KeyError, match="not enough"):
        run(aggregate_machine(Ledger(), events, types=types))


def test_a_snapshot_that_is_read_as_another_state_is_found() -> None:
    message = failure(aggregate_machine(Ledger(), events, snapshot_as=list[int], types=types))

    assert message == (
        "a snapshot at version 0 and what follows is not the replay of all\n"
        "history   nothing\n"
        "replay    (0, 0)\n"
        "snapshot  [0, 0]"
    )


class Counts(Aggregate, category="counts", snapshot=every(10)):
    """Its snapshot is equal to what it was made of, and yet another kind of dict."""

    by_cents: dict[int, int] = defaultdict(int)  # noqa: RUF012 -- each object gets a copy

    def count(self, cents: int) -> None:
        self.emit(Deposited(cents))

    @applies
    def _(self, e: Deposited) -> None:
        self.by_cents[e.cents] += 1


def test_a_snapshot_that_later_events_do_not_fit_is_found() -> None:
    message = failure(
        aggregate_machine(Counts, st.builds(Call, st.just(Counts.count), cents), types=types)
    )

    assert message == (
        "events do not apply to a snapshot at version 0: KeyError: 0\nhistory   Deposited(cents=0)"
    )


@types.event("purse.weighed")
@dataclass(frozen=True)
class Weighed:
    grams: object


@pytest.mark.parametrize("grams", [(1, 2), {3}])
def test_an_event_that_comes_back_as_something_else_is_found(grams: object) -> None:
    class Scale:
        initial = 0

        def decide(self, command: object, _state: int) -> list[Weighed]:
            return [Weighed(command)]

        def evolve(self, state: int, _event: Weighed) -> int:
            return state

    assert "an event is read back as something else" in failure(
        aggregate_machine(Scale(), st.just(grams), types=types)
    )


def test_an_event_that_cannot_be_stored_is_found() -> None:
    with pytest.raises(EventDataError, match="more than 63 bits"):
        run(
            aggregate_machine(
                Ledger(), st.builds(Deposited, st.integers(2**62, 2**64)), types=types
            )
        )


def test_a_subclass_may_add_rules() -> None:
    machine = aggregate_machine(Account, calls, valid=valid, types=types)
    versions = []

    class WithAudit(machine):  # type: ignore[valid-type, misc] # a class made by a function
        @rule()
        def audit(self) -> None:
            versions.append(self.state.version)
            assert self.state.version == len(self.stored)

    run(WithAudit, always_the_same=True)  # chance may leave a rule out of every example

    assert max(versions) > 3


tills = st.lists(
    st.builds(Scanned, st.integers(0, 3), st.integers(0, 9))
    | st.builds(Named, st.just("a"))
    | st.builds(Closed),
    max_size=3,
)


@pytest.mark.parametrize("name", ["AsModel", "Changing"])
def test_a_decider_of_the_store_is_taken_as_it_is(name: str) -> None:
    few = settings(max_examples=10, stateful_step_count=5, deadline=None)
    holds = aggregate_machine(DECIDERS[name], tills, types=till_types)
    fails = aggregate_machine(
        DECIDERS[name], tills, valid=lambda till: till.total < 1, types=till_types
    )

    run_state_machine_as_test(holds, settings=few)
    with pytest.raises(SpecError):
        run_state_machine_as_test(fails, settings=few)
