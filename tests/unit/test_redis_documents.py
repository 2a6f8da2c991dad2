"""Documents: what they may hold, how changes to them add up, how they are read."""

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from datapatterns.cqrs import DELETE, RedisChanges
from datapatterns.cqrs.in_redis.json_text import (
    JSON_BYTES_MAX,
    JSON_DEPTH_MAX,
    json_text,
    json_value,
)
from datapatterns.cqrs.in_redis.redis_changes import TEXT_BYTES_MAX
from datapatterns.cqrs.in_redis.redis_content import RedisContent
from datapatterns.cqrs.in_redis.redis_keys import Place, Structure

BASKET = Place("json", "baskets", "7")


@dataclass(frozen=True)
class Line:
    product: str
    price: Decimal


def nested(depth: int) -> object:
    document: object = 0
    for _ in range(depth):
        document = [document]
    return document


def applied(content: RedisContent, changes: RedisChanges) -> dict[Place, str]:
    content.take(changes.resolved(content.stored(changes.additions())))
    return content.places()


def test_the_same_document_is_the_same_text() -> None:
    assert json_text({"b": 1, "a": [True, None, "å"]}) == '{"a":[true,null,"å"],"b":1}'
    assert json_text({"a": [True, None, "å"], "b": 1}) == '{"a":[true,null,"å"],"b":1}'


@pytest.mark.parametrize(
    "document",
    [2**53 + 1, -(2**200), 0.1, 1e300, -0.0, "", "\0\u2028😀", [], {}, [None], {"": {"": []}}],
)
def test_documents_come_back_as_they_were(document: object) -> None:
    assert json_value(json_text(document)) == document


def test_values_that_json_has_no_word_for_come_as_text_or_objects() -> None:
    when = datetime(2024, 2, 29, tzinfo=UTC)

    text = json_text({"line": Line("milk", Decimal("1.10")), "at": when, "tags": ("a", "b")})

    assert json_value(text) == {
        "line": {"product": "milk", "price": "1.10"},
        "at": "2024-02-29T00:00:00Z",
        "tags": ["a", "b"],
    }


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_refused_wherever_it_hides(number: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        json_text({"a": None, "b": [number]})


@pytest.mark.parametrize("document", ["\ud800", {"\udfff": 1}, [{"a": "x\ud800"}]])
def test_half_a_surrogate_pair_is_no_document(document: object) -> None:
    with pytest.raises(UnicodeEncodeError):
        json_text(document)


@pytest.mark.parametrize("document", [None, {1: "a"}, object(), {"a": 1j}])
def test_what_would_not_come_back_is_refused(document: object) -> None:
    with pytest.raises(TypeError):
        json_text(document)


def test_documents_have_a_largest_size_and_depth() -> None:
    assert json_text("x" * (JSON_BYTES_MAX - 2))
    assert json_text(nested(JSON_DEPTH_MAX))
    assert json_text([["]" * 500, '\\"[']] * JSON_DEPTH_MAX)  # wide, not deep

    with pytest.raises(ValueError, match="split it"):
        json_text("x" * (JSON_BYTES_MAX - 1))
    for depth in (JSON_DEPTH_MAX + 1, 100_000):
        with pytest.raises(ValueError, match="deep"):
            json_text(nested(depth))
    itself: list[object] = []
    itself.append(itself)
    with pytest.raises(ValueError, match="refers to itself"):
        json_text(itself)


def test_a_document_is_what_its_events_made_of_it_one_after_the_other() -> None:
    def add(document: Any, product: str, *, cents: int = 0) -> object:  # noqa: ANN401 -- JSON
        document = document or {"products": [], "cents": 0}
        document["products"].append(product)
        document["cents"] += cents
        return document

    content, changes = RedisContent(), RedisChanges()
    changes.update_json("baskets", 7, add, "milk", cents=120)
    changes.update_json("baskets", 7, add, "bread")

    assert changes.additions() == [BASKET]
    assert len(changes) == 1
    assert applied(content, changes) == {BASKET: '{"cents":120,"products":["milk","bread"]}'}

    later = RedisChanges()
    later.update_json("baskets", 7, add, "tea", cents=5)
    later.update_json("baskets", 7, lambda document: {**document, "paid": True})
    assert applied(content, later) == {
        BASKET: '{"cents":125,"paid":true,"products":["milk","bread","tea"]}'
    }


def test_what_was_put_or_removed_in_the_page_need_not_be_asked_for() -> None:
    changes = RedisChanges()
    changes.put_json("baskets", 7, {"n": 1})
    changes.update_json("baskets", 7, lambda document: {"n": document["n"] + 1})
    changes.remove_json("baskets", 8)
    changes.update_json("baskets", 8, lambda document: [document])
    changes.update_json("baskets", 9, lambda _: DELETE)
    changes.remove_json("baskets", 9)

    assert changes.additions() == []
    assert changes.resolved({}).places == {
        BASKET: '{"n":2}',
        Place("json", "baskets", "8"): "[null]",
        Place("json", "baskets", "9"): None,
    }


def test_a_document_that_is_deleted_begins_anew() -> None:
    content, changes = RedisContent(), RedisChanges()
    changes.put_json("baskets", 7, "old")
    applied(content, changes)

    later = RedisChanges()
    later.update_json("baskets", 7, lambda _: DELETE)
    later.update_json("baskets", 7, lambda document: {"before": document})

    assert applied(content, later) == {BASKET: '{"before":null}'}


def test_what_a_function_returns_is_not_shared_with_what_it_was_given() -> None:
    products = ["milk"]
    changes = RedisChanges()
    changes.put_json("baskets", 7, products)
    products.append("not bought")
    changes.update_json("baskets", 7, lambda document: [*document, "bread"])

    assert changes.resolved({}).places == {BASKET: '["milk","bread"]'}


def test_a_function_that_forgets_to_return_is_refused() -> None:
    changes = RedisChanges()
    changes.update_json("baskets", 7, lambda document: document.clear())

    with pytest.raises(TypeError, match="DELETE"):
        changes.resolved({BASKET: "{}"})


def test_what_somebody_else_put_there_is_no_document() -> None:
    changes = RedisChanges()
    changes.update_json("baskets", 7, lambda document: document)

    with pytest.raises(ValueError, match="no document"):
        changes.resolved({BASKET: "{"})


def test_a_structure_that_is_dropped_begins_anew() -> None:
    content, changes = RedisContent(), RedisChanges()
    for field in ("a", "b"):
        changes.increment("totals", field, 5)
        changes.set_score("ranks", field, 5)
        changes.put_json("baskets", field, 5)
    applied(content, changes)

    later = RedisChanges()
    later.increment("totals", "b")
    later.drop("totals")
    later.increment("totals", "c")
    later.drop_scores("ranks")
    later.add_score("ranks", "a", 2)
    later.drop_json("baskets")
    later.update_json("baskets", "a", lambda document: [document])

    assert later.additions() == []
    assert applied(content, later) == {
        Place("hash", "totals", "c"): "1",
        Place("zset", "ranks", "a"): "2",
        Place("json", "baskets", "a"): "[null]",
    }


def test_a_structure_that_is_dropped_and_not_filled_again_goes_as_one_change() -> None:
    changes = RedisChanges()
    changes.put("totals", "a", "b")
    changes.drop("totals")

    outcome = changes.resolved({})

    assert (outcome.places, list(outcome.dropped)) == ({}, [Structure("hash", "totals")])


def test_text_has_a_longest_length() -> None:
    changes = RedisChanges()
    changes.put("totals", "a", "x" * TEXT_BYTES_MAX)
    with pytest.raises(ValueError, match="shorten"):
        changes.put("totals", "a", "å" * TEXT_BYTES_MAX)
    with pytest.raises(ValueError, match="shorten"):
        changes.add_score("x" * (TEXT_BYTES_MAX + 1), "a")
