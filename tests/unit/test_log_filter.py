from datetime import UTC, datetime

import pytest

from datapatterns.event_sourcing import LogFilter
from datapatterns.event_sourcing.log.filtering import EVERYTHING, log_filter


def test_filters_that_mean_the_same_are_equal_and_can_be_keys() -> None:
    one = LogFilter(event_types=["b", "a", "b"], categories={"c"}, tags=["t", "u", "t"])
    other = LogFilter(event_types=("a", "b"), categories=["c"], tags=("t", "u"))

    assert one == other
    assert {one: 1}[other] == 1
    assert LogFilter() == EVERYTHING


def test_none_of_the_types_is_a_condition_and_not_the_lack_of_one() -> None:
    nothing = log_filter(None, [])

    assert nothing == LogFilter(event_types=()) != EVERYTHING
    assert hash(nothing) == hash(LogFilter(event_types=set()))
    assert (nothing.shape.event_types, nothing.parameters["event_types"]) == (True, [])
    assert LogFilter(categories=[]) != EVERYTHING


def test_the_order_of_tags_is_kept_as_the_first_one_leads() -> None:
    assert LogFilter(tags=["z", "a"]).parameters["tag"] == "z"


@pytest.mark.parametrize(
    "wrong",
    [
        {"event_types": "item.scanned"},
        {"categories": "till"},
        {"tags": "one"},
        {"tags": [""]},
        {"tags": ["\0"]},
        {"event_types": ["item.\0"]},
        {"categories": ["till", "\ud800"]},
        {"tenant": "shop \0"},
        {"since": datetime(2024, 1, 1)},  # noqa: DTZ001 -- what is refused
        {"until": datetime(2024, 1, 1)},  # noqa: DTZ001 -- what is refused
    ],
    ids=str,
)
def test_what_is_no_condition_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"text|tag|time zone"):
        LogFilter(**wrong)  # type: ignore[arg-type] # what is refused


def test_other_alphabets_are_text() -> None:
    assert LogFilter(categories=["Käse 🧀"], tenant="店").tenant == "店"


def test_types_are_given_once() -> None:
    given = LogFilter(since=datetime(2024, 1, 1, tzinfo=UTC))

    assert log_filter(None, None) is EVERYTHING
    assert log_filter(given, None) is given
    assert log_filter(None, ["a"]) == LogFilter(event_types=["a"])
    with pytest.raises(ValueError, match="beside a filter"):
        log_filter(given, ["a"])
