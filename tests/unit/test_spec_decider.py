"""Given, when, then: what holds passes, what does not is told line by line."""

from dataclasses import dataclass, field, replace

import pytest

from datapatterns.event_sourcing import Aggregate, EventTypes, applies
from datapatterns.testing import Call, DeciderSpec, ImpureEvolveError, SpecError

types = EventTypes()


@types.event("seat.booked")
@dataclass(frozen=True)
class Booked:
    guest: str
    seats: int = 1


@types.event("show.closed")
@dataclass(frozen=True)
class Closed:
    guests: list[str]


class Show(Aggregate, category="show"):
    free = 3
    guests: list[str] = []  # noqa: RUF012 -- each object gets a copy

    def book(self, guest: str, seats: int = 1) -> None:
        if seats > self.free:
            raise ValueError(f"only {self.free} seats are free")
        self.emit(Booked(guest, seats))
        if not self.free:
            self.emit(Closed(self.guests))

    @applies
    def _(self, e: Booked) -> None:
        self.free -= e.seats
        self.guests.append(e.guest)

    @applies
    def _(self, e: Closed) -> None:
        self.guests = e.guests


@dataclass(frozen=True)
class Account:
    balance: int = 0


class Bank:
    initial = Account()

    def decide(self, command: tuple[str, int], state: Account) -> list[tuple[str, int]]:
        kind, amount = command
        if kind == "withdraw" and amount > state.balance:
            raise ValueError("not enough")
        return [command] if amount else []

    def evolve(self, state: Account, event: tuple[str, int]) -> Account:
        sign = 1 if event[0] == "deposit" else -1
        return replace(state, balance=state.balance + sign * event[1])


def test_an_aggregate_is_asked_by_its_methods() -> None:
    show = DeciderSpec(Show).given(Booked("Ann"))

    show.when(Show.book, "Bo").then(Booked("Bo")).then_state(free=1)
    show.when(Show.book, "Bo", seats=2).then(Booked("Bo", 2), Closed(["Ann", "Bo"]))
    show.when(Call(Show.book, "Bo")).then(Booked("Bo"))
    show.when(lambda s: s.book("Bo")).then_state(guests=["Ann", "Bo"], version=2)
    show.when(Show.book, "Bo", seats=3).then_raises(ValueError, match="only 2 seats")


def test_a_decider_is_asked_by_its_commands() -> None:
    account = DeciderSpec(Bank()).given(("deposit", 10))

    account.when(("withdraw", 10)).then(("withdraw", 10)).then_state(Account(0))
    account.when(("withdraw", 10)).then_state(balance=0)
    account.when(("withdraw", 0)).then_nothing()
    account.when(("withdraw", 11)).then_raises(ValueError)


def test_a_kept_part_of_a_chain_is_not_changed_by_what_follows() -> None:
    empty = DeciderSpec(Bank())
    rich = empty.given(("deposit", 10))
    rich.given(("withdraw", 10)).when(("withdraw", 1)).then_raises(ValueError)

    rich.when(("withdraw", 10)).then(("withdraw", 10))
    empty.when(("withdraw", 1)).then_raises(ValueError)


def test_given_events_stay_as_they_were_when_the_aggregate_goes_on_with_their_lists() -> None:
    closed = Closed(["Ann"])
    show = DeciderSpec(Show).given(closed)

    for _ in range(2):
        show.when(Show.book, "Bo").then_state(guests=["Ann", "Bo"])

    assert closed == Closed(["Ann"])


def message_of(failing: pytest.ExceptionInfo[SpecError]) -> list[str]:
    return str(failing.value).splitlines()[1:]


def test_another_event_is_told_with_the_fields_that_differ() -> None:
    show = DeciderSpec(Show).given(Booked("Ann"), Booked("Cy"))

    with pytest.raises(SpecError) as failing:
        show.when(Show.book, "Bo").then(Booked("Bob"), Closed(["Ann", "Cy", "Bo"]))

    assert message_of(failing) == [
        "given     Booked(guest='Ann', seats=1)",
        "          Booked(guest='Cy', seats=1)",
        "when      book('Bo')",
        "expected  Booked(guest='Bob', seats=1)",
        "          Closed(guests=['Ann', 'Cy', 'Bo'])",
        "got       Booked(guest='Bo', seats=1)",
        "          Closed(guests=['Ann', 'Cy', 'Bo'])",
        "differs   Booked.guest: expected 'Bob', got 'Bo'",
    ]


def test_missing_and_surplus_events_are_told() -> None:
    show = DeciderSpec(Show).given(Booked("Ann"), Booked("Cy"))

    with pytest.raises(SpecError, match=r"surplus   Closed\(guests=\['Ann', 'Cy', 'Bo'\]\)"):
        show.when(Show.book, "Bo").then(Booked("Bo"))
    with pytest.raises(SpecError, match=r"missing   Booked\(guest='Di', seats=1\)"):
        DeciderSpec(Show).when(Show.book, "Bo").then(Booked("Bo"), Booked("Di"))


def test_an_unexpected_refusal_is_told_and_is_the_cause() -> None:
    with pytest.raises(SpecError) as failing:
        DeciderSpec(Show).when(Show.book, "Bo", seats=4).then(Booked("Bo", 4))

    assert message_of(failing) == [
        "given     nothing",
        "when      book('Bo', seats=4)",
        "expected  Booked(guest='Bo', seats=4)",
        "got       ValueError: only 3 seats are free",
    ]
    assert isinstance(failing.value.__cause__, ValueError)


def test_a_refusal_is_neither_nothing_nor_a_state() -> None:
    refused = DeciderSpec(Bank()).when(("withdraw", 1))

    with pytest.raises(SpecError, match="got       ValueError: not enough"):
        refused.then_nothing()
    with pytest.raises(SpecError, match="got       ValueError: not enough"):
        refused.then_state(Account(0))
    with pytest.raises(SpecError, match="got       ValueError: not enough"):
        refused.then_state(balance=0)


@pytest.mark.parametrize(("error", "match"), [(KeyError, None), (ValueError, "too much")])
def test_another_refusal_than_the_expected_one_is_told(
    error: type[Exception], match: str | None
) -> None:
    with pytest.raises(SpecError, match=f"expected  {error.__name__}"):
        DeciderSpec(Bank()).when(("withdraw", 1)).then_raises(error, match=match)


def test_no_refusal_is_told() -> None:
    with pytest.raises(SpecError, match=r"got       \('deposit', 1\)"):
        DeciderSpec(Bank()).when(("deposit", 1)).then_raises(ValueError)


def test_another_state_is_told_with_what_differs() -> None:
    deposited = DeciderSpec(Bank()).when(("deposit", 1))

    with pytest.raises(SpecError, match=r"differs   Account.balance: expected 2, got 1"):
        deposited.then_state(Account(2))
    with pytest.raises(SpecError, match=r"differs   balance: expected 2, got 1"):
        deposited.then_state(balance=2)
    with pytest.raises(SpecError, match=r"differs   blance: expected 1, got no such attribute"):
        deposited.then_state(blance=1)
    with pytest.raises(TypeError, match="expect either"):
        deposited.then_state()


@dataclass
class Tally:
    counts: dict[str, int] = field(default_factory=dict)


class Counter:
    initial = Tally()

    def decide(self, command: str, _state: Tally) -> list[str]:
        return [command]

    def evolve(self, state: Tally, event: str) -> Tally:
        state.counts[event] = state.counts.get(event, 0) + 1
        return state


def test_evolving_in_place_is_refused_for_others_hold_the_same_state() -> None:
    with pytest.raises(ImpureEvolveError, match="event    'a'"):
        DeciderSpec(Counter()).when("a")


def test_whatever_cannot_decide_is_refused() -> None:
    with pytest.raises(TypeError, match="neither an Aggregate class nor"):
        DeciderSpec(object())  # type: ignore[call-overload] # that is the test
