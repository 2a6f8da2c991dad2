import json

import pytest

from datapatterns.event_sourcing import EventTypes, Tagged, TagQuery
from datapatterns.event_sourcing.appending.tag_query import ITEMS_MAX, condition_json, locked_tags


@pytest.mark.parametrize(
    ("tags", "types"),
    [
        ((), None),
        (("",), None),
        (("a", ""), None),
        (("a\tb",), None),
        (("a\n",), None),
        ("course:c1", None),
        (("x" * 501,), None),
        (("a",), ()),
        (("a",), ("",)),
        (("a",), "student.enrolled"),
        (("a",), ("bad name",)),
        (("a",), (7,)),
    ],
)
def test_an_item_that_would_match_all_or_nothing_is_refused(tags: object, types: object) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Tagged(tags, types)  # type: ignore[arg-type] # the point


def test_a_query_has_items_but_not_too_many() -> None:
    with pytest.raises(ValueError, match="nothing"):
        TagQuery(())
    with pytest.raises(ValueError, match="too many"):
        TagQuery(tuple(Tagged((str(n),)) for n in range(ITEMS_MAX + 1)))


def test_queries_are_values() -> None:
    query = Tagged(("b", "a", "b"), types=("x",)) | Tagged(("c",)) | Tagged(("c",))

    assert query == TagQuery((Tagged(("a", "b"), types=("x",)), Tagged(("c",))))
    assert Tagged(("c",)) | query == TagQuery((Tagged(("c",)), Tagged(("a", "b"), types=("x",))))


def test_the_tag_that_is_locked_is_the_first_that_the_database_sees() -> None:
    query = Tagged(("b", "a"), types=("x",)) | Tagged(("c",))

    sent = json.loads(condition_json(query, EventTypes()))

    assert sent == [{"tags": ["a", "b"], "types": ["x"]}, {"tags": ["c"]}]
    assert locked_tags(query) == [item["tags"][0] for item in sent]


@pytest.mark.parametrize(
    ("types", "matches"), [(None, "every event"), (("a",), "events by their types alone")]
)
def test_an_item_without_tags_says_why_it_needs_one(
    types: tuple[str, ...] | None, matches: str
) -> None:
    with pytest.raises(ValueError, match=f"matches {matches}, .* give one tag at least"):
        Tagged((), types)
