"""A graph has one digest, in whatever order its things were met, and another with each change."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from datapatterns.event_sourcing.states.told_graph import Told, graph_digest

THINGS_MAX = 8


@st.composite
def graphs(draw: st.DrawFn) -> list[Told]:
    """Return things of which all can be reached from the first."""
    count = draw(st.integers(2, THINGS_MAX))
    any_thing = st.lists(st.integers(0, count - 1), max_size=3)
    return [
        Told(
            draw(st.sampled_from("ab")),
            [*draw(any_thing), *([number + 1] if number + 1 < count else [])],
            draw(any_thing),
        )
        for number in range(count)
    ]


def renumbered(things: Sequence[Told], order: Sequence[int]) -> list[Told]:
    place = {old: new for new, old in enumerate(order)}
    return [
        Told(
            things[old].text,
            [place[link] for link in things[old].links],
            [place[member] for member in reversed(list(things[old].members))],
        )
        for old in order
    ]


@given(graphs(), st.data())
def test_neither_the_order_of_meeting_counts_nor_that_in_a_set(
    things: list[Told], data: st.DataObject
) -> None:
    others = data.draw(st.permutations(range(1, len(things))))

    assert graph_digest(renumbered(things, [0, *others])) == graph_digest(things)


@given(graphs(), st.data())
def test_another_text_anywhere_is_another_graph(things: list[Told], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(things) - 1))

    changed = [t._replace(text="c") if i == place else t for i, t in enumerate(things)]

    assert graph_digest(changed) != graph_digest(things)


@given(graphs(), st.data())
def test_another_link_is_another_graph(things: list[Told], data: st.DataObject) -> None:
    """Where all things are told apart by their texts."""
    apart = [t._replace(text=str(i)) for i, t in enumerate(things)]
    place = data.draw(st.integers(0, len(things) - 1))
    link = data.draw(st.integers(0, len(things[place].links or [0]) - 1))
    before = [*apart[place].links] or [0]
    after = [*before]
    after[link] = (before[link] + 1) % len(things)

    one = [t._replace(links=before) if i == place else t for i, t in enumerate(apart)]
    other = [t._replace(links=after) if i == place else t for i, t in enumerate(apart)]

    assert graph_digest(one) != graph_digest(other)


@given(graphs(), st.data())
def test_another_member_is_another_graph(things: list[Told], data: st.DataObject) -> None:
    apart = [t._replace(text=str(i), members=sorted(set(t.members))) for i, t in enumerate(things)]
    place = data.draw(st.integers(0, len(things) - 1))
    missing = sorted(set(range(len(things))) - set(apart[place].members))
    more = [*apart[place].members, data.draw(st.sampled_from(missing or [0]))]

    changed = [t._replace(members=more) if i == place else t for i, t in enumerate(apart)]

    assert graph_digest(changed) != graph_digest(apart)


def test_the_place_in_a_long_row_of_things_that_are_alike_counts() -> None:
    def row(before: int, after: int) -> list[Told]:
        texts = ["a"] * before + ["b"] + ["a"] * after
        last = len(texts) - 1
        return [Told(text, [i + 1] if i < last else []) for i, text in enumerate(texts)]

    assert graph_digest(row(200, 300)) != graph_digest(row(201, 299))


def test_an_ordered_link_is_not_a_member_of_a_set() -> None:
    ends = [Told("a"), Told("b")]

    assert graph_digest([Told("x", links=[1, 2]), *ends]) != graph_digest(
        [Told("x", links=[1], members=[2]), *ends]
    )
