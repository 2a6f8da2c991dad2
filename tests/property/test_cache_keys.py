"""No two keys share an entry."""

from hypothesis import given
from hypothesis import strategies as st

from datapatterns.cache_aside.keys import Key, entry_of

awkward = st.text(alphabet=":%#{}iTNsab\0é", max_size=6)
parts = (
    awkward
    | st.integers(-20, 20)
    | st.booleans()
    | st.none()
    | st.binary(max_size=3)
    | st.uuids()
    | st.dates()
    | st.text(min_size=190, max_size=230)
)
keys = st.lists(parts, min_size=1, max_size=3).map(tuple)


def typed(key: tuple[object, ...]) -> list[tuple[type, object]]:
    return [(type(part), part) for part in key]


@given(first=keys, second=keys)
def test_different_keys_have_different_entries(
    first: tuple[object, ...], second: tuple[object, ...]
) -> None:
    one: Key = first  # type: ignore[assignment]  # drawn from what a key may hold
    other: Key = second  # type: ignore[assignment]  # likewise

    same = entry_of("cache", one) == entry_of("cache", other)

    assert same == (typed(first) == typed(second))
