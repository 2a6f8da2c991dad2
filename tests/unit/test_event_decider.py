"""A decider is checked where it is declared; a spec takes the same object as the store."""

from collections.abc import Awaitable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import attrs
import pytest

from datapatterns.errors import AggregateError
from datapatterns.event_sourcing import Aggregate, Decider, EventTypes, applies, every
from datapatterns.event_sourcing.states.snapshotting import snapshot_kind
from datapatterns.testing import DeciderSpec
from tests.fixtures.tills import DECIDERS, AsDataclass, Closed, Named, Scanned, evolve, types

decide: Any = DECIDERS["AsDataclass"].decide


def test_a_decider_knows_its_events_and_its_state_by_its_annotations() -> None:
    def counted(state: Any, _e: Scanned | Named) -> int | None:  # noqa: ANN401 -- not read
        return int(state) + 1

    initial: int | None = 0
    assert Decider("till", initial, decide, counted).events == (Scanned, Named)
    assert Decider("till", initial, decide, counted).state == (int | None)
    assert Decider("till", AsDataclass(), decide, evolve).state is AsDataclass
    assert Decider("till", initial, decide, counted, state=int, events=(Closed,)).events == (
        Closed,
    )
    assert Decider("till", 0, decide, lambda s, _: s).events == ()


async def async_decide(_command: object, _state: int) -> list[object]:
    return []


async def async_evolve(state: int, _event: object) -> int:
    return state


def yielding(state: int, _event: object) -> Iterator[int]:
    yield state


def plain(state: int, _event: object) -> int:
    return state


@pytest.mark.parametrize(
    ("decides", "evolves", "reason"),
    [
        (async_decide, plain, "async decide"),
        (decide, async_evolve, "async evolve"),
        (decide, yielding, "evolve that yields"),
        (decide, lambda state: state, "two arguments"),
        (list, plain, "two arguments"),
        (partial(decide, 1), plain, "two arguments"),
    ],
)
def test_functions_that_could_not_be_called_are_refused(
    decides: Any,  # noqa: ANN401 -- wrong ones
    evolves: Any,  # noqa: ANN401 -- as above
    reason: str,
) -> None:
    with pytest.raises(AggregateError, match=reason):
        Decider("till", 0, decides, evolves)


def test_handlers_of_aggregates_that_would_not_run_are_refused() -> None:
    with pytest.raises(AggregateError, match="async or yields"):

        class Async(Aggregate):
            @applies  # type: ignore[type-var]
            async def _(self, e: Scanned) -> None: ...

    with pytest.raises(AggregateError, match="async or yields"):

        class Yields(Aggregate):
            @applies  # type: ignore[type-var]
            def _(self, _e: Scanned) -> Iterator[None]:
                yield

    with pytest.raises(AggregateError, match="async or yields"):

        class Both(Aggregate):
            @applies
            async def _(self, _e: Scanned) -> Any:  # noqa: ANN401 -- wrong
                yield


def test_a_state_that_was_not_returned_is_found() -> None:
    def forgot(_state: list[int], _e: Scanned) -> Any:  # noqa: ANN401 -- nothing
        return None

    till: Any = Decider("till", [], decide, forgot)("7")

    with pytest.raises(AggregateError, match="returned nothing for Scanned"):
        till.emit(Scanned(1, 1))


def test_one_event_is_no_list_of_events() -> None:
    def single(command: Scanned, _state: int) -> Any:  # noqa: ANN401 -- wrong
        return command

    def later(_command: Scanned, _state: int) -> Awaitable[Any]:
        return async_decide(1, 2)

    wrong: list[Any] = [single, later]
    for decides in wrong:
        with pytest.raises(TypeError, match=r"no list of events|has run"):
            Decider("till", 0, decides, plain)("7").decide(Scanned(1, 1))


class Pair(NamedTuple):
    left: int
    right: int


@attrs.frozen
class Several:
    parts: tuple[int, ...] = (1, 2)

    def __iter__(self) -> Iterator[int]:
        return iter(self.parts)


@dataclass(frozen=True)
class Bare:
    def __iter__(self) -> Iterator[int]:
        return iter((1, 2))


@pytest.mark.parametrize(
    "one",
    [Closed(by="ann"), Several(), Bare(), Pair(1, 2), {"a": 1}, {1}, "text", b"bytes", None],
    ids=lambda one: type(one).__name__,
)
def test_one_event_does_not_come_apart_into_its_fields(one: Any) -> None:  # noqa: ANN401 -- anything
    """Many can be iterated over, and would be stored in pieces."""
    folded: Any = Decider[Any, int, Any]("till", 0, lambda *_: one, plain)("7")

    with pytest.raises(TypeError, match="no list of events"):
        folded.decide(Scanned(1, 1))

    assert (folded.version, folded.unsaved) == (0, ())


def test_a_state_that_evolve_left_half_changed_is_not_saved_and_an_unchanging_one_is() -> None:
    def halfway(state: Any, _e: object) -> Any:  # noqa: ANN401 -- either state
        if isinstance(state, list):
            state.append("half")
        raise LookupError

    for initial, is_torn in ([], True), ((), False):
        folded: Any = Decider[Any, Any, Any]("till", initial, decide, halfway)("7")
        with pytest.raises(LookupError):
            folded.emit(Scanned(1, 1))

        with pytest.raises(AggregateError, match="half changed") if is_torn else nullcontext():
            folded._history.refuse_torn()  # noqa: SLF001 -- what a save and a snapshot ask


@dataclass(frozen=True)
class Listed:
    parts: tuple[list[int], ...]


def test_who_goes_on_with_a_list_in_a_tuple_changes_no_event() -> None:
    part = [1]
    folded: Any = Decider[Any, Any, Any]("till", (), decide, lambda _, e: e.parts)("7")

    folded.emit(Listed((part,)))
    part.append(2)
    folded.state[0].append(3)

    assert folded.unsaved == (Listed(([1],)),)
    assert folded.state == ([1, 3],)


def test_what_python_cannot_describe_may_decide_and_nothing_may_be_a_state() -> None:
    assert Decider[Any, int, Any]("till", 0, decide, max).events == ()
    nothing: Any = Decider[Any, None, Any]("till", None, decide, lambda *_: None)("7")

    nothing.decide([Scanned(1, 1)])

    assert (nothing.state, nothing.version) == (None, 1)


@pytest.mark.parametrize("name", DECIDERS)
def test_a_spec_takes_what_the_store_takes(name: str) -> None:
    spec = DeciderSpec(DECIDERS[name]).given(Scanned(1, 5))

    spec.when([Scanned(2, 7)]).then(Scanned(2, 7)).then_state(total=12)
    spec.when([]).then_nothing()


def test_a_policy_needs_the_events_and_a_state_that_can_be_stored() -> None:
    with pytest.raises(AggregateError, match="which events"):
        snapshot_kind(Decider("till", 0, decide, plain, snapshot=every(1)), types)
    with pytest.raises(AggregateError, match="cannot be decoded"):
        snapshot_kind(
            Decider(
                "till", object(), decide, evolve, state=dict[bytes | str, int], snapshot=every(1)
            ),
            types,
        )


def kind_of(decider: Any, declared: EventTypes = types) -> bytes:  # noqa: ANN401 -- any
    kind = snapshot_kind(decider, declared)
    assert kind is not None
    return kind.fingerprint


@dataclass(frozen=True)
class Limited:
    limit: int

    def evolve(self, state: int, e: Scanned) -> int:
        return min(self.limit, state + e.cents)


def test_what_a_decider_folds_by_is_in_its_fingerprint() -> None:
    def one(state: int, e: Scanned) -> int:
        return state + e.cents

    def other(state: int, e: Scanned) -> int:
        return state - e.cents

    def decider(evolves: Any, initial: Any = 0, **options: Any) -> Any:  # noqa: ANN401 -- any
        return Decider("till", initial, decide, evolves, snapshot=every(1), **options)

    different = [
        decider(one),
        decider(other),
        decider(one, 1),
        decider(one, state=float),
        decider(one, events=(Scanned, Named)),
        decider(one, snapshot_version=1),
        decider(Limited(1).evolve),
        decider(Limited(2).evolve),
        decider(partial(one), events=(Scanned,)),
        decider(partial(other), events=(Scanned,)),
    ]
    assert len({kind_of(each) for each in different}) == len(different)
    assert kind_of(decider(one)) == kind_of(decider(one))
    renamed = types.skipping_unknown()
    renamed.renamed("till.read", "till.scanned")
    assert kind_of(decider(one), renamed) != kind_of(decider(one))


def test_what_is_decided_is_not_in_the_fingerprint() -> None:
    def decides(_command: object, _state: object) -> list[Any]:
        return []

    one, other = (
        Decider("till", AsDataclass(), function, evolve, snapshot=every(1))
        for function in (decide, decides)
    )
    assert kind_of(one) == kind_of(other)
