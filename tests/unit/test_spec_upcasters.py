"""A corpus of what was ever stored: recorded once, read for ever."""

from copy import copy
from dataclasses import dataclass
from datetime import date
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from datapatterns.errors import EventTypeError
from datapatterns.event_sourcing import EventTypes, NewEvent
from datapatterns.event_sourcing.evolution.evolving import Upcaster
from datapatterns.testing import (
    SpecError,
    StoredPayload,
    assert_upcasters,
    read_corpus,
    record_corpus,
)


@dataclass(frozen=True)
class Scanned:
    product: int
    cents: int
    tags: list[str]


def in_cents(old: dict[str, Any]) -> dict[str, Any]:
    old["cents"] = round(old.pop("price") * 100)  # it is given a copy of its own
    return old


def with_tags(old: dict[str, Any]) -> dict[str, Any]:
    return {**old, "tags": []}


def third_version(first: Upcaster = in_cents, second: Upcaster = with_tags) -> EventTypes:
    types = EventTypes()
    types.event("item.scanned", version=3)(Scanned)
    types.upcast("item.scanned", 1)(first)
    types.upcast("item.scanned", 2)(second)
    return types


CORPUS = [
    StoredPayload("item.scanned", 1, {"product": 7, "price": 1.49}),
    StoredPayload("item.scanned", 2, {"product": 7, "cents": 149}),
    StoredPayload("item.scanned", 3, {"product": 7, "cents": 149, "tags": ["a"]}),
]


def test_upcasters_that_are_right_pass() -> None:
    assert assert_upcasters(CORPUS, types=third_version(), events=[Scanned]) == 3


def failure(types: EventTypes, corpus: list[StoredPayload] = CORPUS) -> str:
    with pytest.raises(SpecError) as failing:
        assert_upcasters(corpus, types=types)
    return str(failing.value)


def test_a_version_from_which_nothing_leads_on_is_told() -> None:
    types = EventTypes()
    types.event("item.scanned", version=3)(Scanned)
    types.upcast("item.scanned", 2)(with_tags)

    assert failure(types) == (
        "what was stored cannot be read\n"
        "event     item.scanned version 1\n"
        "stored    {'product': 7, 'price': 1.49}\n"
        "got       no upcaster leads on"
    )


def test_an_upcaster_that_fails_for_an_old_form_is_told() -> None:
    old = [StoredPayload("item.scanned", 1, {"product": 7})]

    assert "got       KeyError('price')" in failure(third_version(), [*CORPUS, *old])


def test_an_upcaster_that_leads_elsewhere_is_told() -> None:
    assert "tags" in failure(third_version(second=lambda old: old))


def test_an_upcaster_that_looks_at_the_day_is_told_before_it_ends() -> None:
    def dated(old: dict[str, Any]) -> dict[str, Any]:
        return {**old, "tags": [str(date.today())]}  # noqa: DTZ011 -- that is the test

    assert "it calls  date.today()" in failure(third_version(second=dated))


def test_a_corpus_may_be_named_by_a_string(tmp_path: Path) -> None:
    types = third_version()

    record_corpus(str(tmp_path / "stored"), [Scanned(7, 149, [])], types=types)

    with pytest.raises(SpecError, match="version 1"):
        assert_upcasters(str(tmp_path / "stored"), types=types)


def test_an_upcaster_that_depends_on_more_than_its_data_is_told() -> None:
    numbers = count()

    message = failure(third_version(second=lambda old: {**old, "tags": [str(next(numbers))]}))

    assert "a second reading gives something else" in message
    assert "second    Scanned(product=7, cents=149, tags=['1'])" in message


def test_a_payload_that_is_changed_by_being_read_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_place(old: dict[str, Any]) -> dict[str, Any]:
        old["tags"].append("lifted")
        return old

    corpus = [*CORPUS, StoredPayload("item.scanned", 2, {"product": 7, "cents": 1, "tags": []})]
    types = third_version(second=lambda old: in_place(old) if "tags" in old else with_tags(old))
    assert assert_upcasters(corpus, types=types) == 4

    monkeypatch.setattr("datapatterns.event_sourcing.evolution.lifting.private", copy)

    assert "reading changes what is stored" in failure(types, corpus)


def test_an_event_of_today_that_would_be_stored_otherwise_is_told() -> None:
    @dataclass(frozen=True)
    class Weighed:
        grams: object

    types = EventTypes()
    types.event("item.weighed", version=2)(Weighed)
    types.upcast("item.weighed", 1)(lambda old: {"grams": tuple(old["grams"])})
    corpus = [
        StoredPayload("item.weighed", 1, {"grams": [1]}),
        StoredPayload("item.weighed", 2, {"grams": 1}),
    ]

    assert "an event is read back as something else" in failure(types, corpus)


def test_versions_that_the_corpus_lacks_are_told() -> None:
    assert failure(third_version(), CORPUS[1:2]).splitlines()[1:3] == [
        "missing   item.scanned version 1",
        "missing   item.scanned version 3",
    ]
    with pytest.raises(SpecError, match=r"missing   item\.scanned version 1"):
        assert_upcasters([], events=[Scanned], types=third_version())
    with pytest.raises(SpecError, match="the corpus is empty"):
        assert_upcasters([], types=third_version())


def test_an_event_that_is_declared_no_more_cannot_be_read() -> None:
    with pytest.raises(EventTypeError, match="stored but not declared"):
        assert_upcasters(CORPUS, types=EventTypes())


def test_what_is_recorded_today_is_read_tomorrow(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    today = EventTypes()
    declared = today.event("till:item.scanned")(Scanned)
    events = [declared(7, 149, ["ß"]), declared(8, 0, []), declared(7, 149, ["ß"])]

    [written] = record_corpus(folder, events, types=today)

    assert written.read_text(encoding="utf-8") == (
        "[\n"
        '{"cents": 149, "product": 7, "tags": ["ß"]},\n'
        '{"cents": 0, "product": 8, "tags": []}\n'
        "]\n"
    )
    assert record_corpus(folder, events, types=today) == []
    assert read_corpus(folder) == [
        StoredPayload("till:item.scanned", 1, {"cents": 149, "product": 7, "tags": ["ß"]}),
        StoredPayload("till:item.scanned", 1, {"cents": 0, "product": 8, "tags": []}),
    ]

    tomorrow = EventTypes()
    tomorrow.event("till:item.scanned", version=2)(Scanned)
    tomorrow.upcast("till:item.scanned", 1)(lambda old: {**old, "cents": old["cents"] * 100})
    with pytest.raises(SpecError, match=r"missing   till:item\.scanned version 2"):
        assert_upcasters(folder, types=tomorrow)
    record_corpus(folder, [Scanned(9, 1, [])], types=tomorrow)
    assert assert_upcasters(folder, types=tomorrow) == 3


def test_what_was_recorded_before_stays_in_its_file(tmp_path: Path) -> None:
    record_corpus(tmp_path, [Scanned(7, 149, [])], types=third_version())
    record_corpus(tmp_path, [Scanned(8, 1, [])], types=third_version())

    assert [payload.data["product"] for payload in read_corpus(tmp_path)] == [7, 8]


def test_what_a_store_has_returned_is_recorded_in_the_version_it_has(tmp_path: Path) -> None:
    old = NewEvent("item.scanned", {"product": 7, "price": 1.49})
    record_corpus(tmp_path, [old, Scanned(7, 149, [])], types=third_version())

    assert [payload.schema_version for payload in read_corpus(tmp_path)] == [1, 3]
    with pytest.raises(SpecError, match=r"missing   item\.scanned version 2"):
        assert_upcasters(tmp_path, types=third_version())


def test_a_corpus_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="record_corpus"):
        assert_upcasters(tmp_path / "elsewhere")
