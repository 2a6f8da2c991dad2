import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapatterns.errors import EventDataError
from datapatterns.event_sourcing.content.payload import (
    DEPTH_MAX,
    EVENT_BYTES_MAX,
    encode_event,
    encode_events,
    encode_mapping,
)


def nested(depth: int) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for _ in range(depth):
        data = {"a": [data]}
    return data


def within_itself() -> dict[str, Any]:
    data: dict[str, Any] = {}
    data["a"] = data
    return data


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"note": ["a", "b\0c"]}, r"note\[1\] holds U\+0000"),
        ({"a": {"b\0": 1}}, "a key holds"),
        ({"note": "\ud800"}, "note holds half a surrogate pair"),
        ({"\udfff": 1}, "half a surrogate pair"),
        ({"x": float("nan")}, "x is nan"),
        ({"x": {"y": float("-inf")}}, "x.y is -inf"),
        ({"x": 2**63}, "63 bits"),
        ({"x": -(10**5000)}, "63 bits"),
        ({"x": {1: 2}}, "keys must be text"),
        ({None: 2}, "keys must be text"),
        ({"x": object()}, "unsupported"),
        ({"x": "a" * EVENT_BYTES_MAX}, "bytes of JSON"),
        (nested(DEPTH_MAX), "nested deeper"),
        (nested(100_000), "nested too deep"),
        (within_itself(), "within itself"),
    ],
)
def test_what_could_not_be_read_back_is_refused_with_its_place(
    data: dict[str, Any], reason: str
) -> None:
    with pytest.raises(EventDataError, match=reason) as refusal:
        encode_mapping(data, event_type="thing.happened")

    assert refusal.value.event_type == "thing.happened"
    assert len(str(refusal.value)) < 500


def test_the_backslash_before_u0000_is_only_text() -> None:
    assert json.loads(encode_mapping({"a": "\\u0000"}, event_type="t")) == {"a": "\\u0000"}


def test_limits_are_met_exactly() -> None:
    encode_mapping({"x": 2**63 - 1, "y": -(2**63) + 1}, event_type="t")
    encode_mapping(nested(DEPTH_MAX // 2 - 1), event_type="t")
    encode_mapping({"x": "a" * (EVENT_BYTES_MAX - len('{"x":""}'))}, event_type="t")


def test_any_mapping_will_do() -> None:
    assert encode_mapping(MappingProxyType({"a": (1, None, True)}), event_type="t") == (
        '{"a":[1,null,true]}'
    )


@dataclass(frozen=True)
class Paid:
    amount: Decimal
    at: datetime
    order: UUID
    lines: dict[int, str] = field(default_factory=dict)


class Array(msgspec.Struct, frozen=True, array_like=True):
    a: int


def test_typed_events_come_back_equal() -> None:
    paid = Paid(Decimal("1.10"), datetime(2026, 1, 1, tzinfo=UTC), UUID(int=7), {1: "a"})

    encoded = encode_event(paid, event_type="paid")

    assert msgspec.json.decode(encoded, type=Paid) == paid


class Weighed(msgspec.Struct, frozen=True):
    grams: float | None
    by: str | None = None


class Sparse(msgspec.Struct, frozen=True, omit_defaults=True):
    grams: float | None
    by: str | None = None


@dataclass(frozen=True)
class Scale:
    grams: float | None
    by: str | None = None


@pytest.mark.parametrize("kind", [Weighed, Sparse, Scale])
@pytest.mark.parametrize("by", [None, "ann", "null"])
@pytest.mark.parametrize("grams", [float("nan"), float("inf")])
def test_no_number_is_stored_as_nothing_beside_what_is_nothing(
    kind: Any,  # noqa: ANN401 -- classes of several libraries
    by: str | None,
    grams: float,
) -> None:
    """JSON writes NaN as ``null``, as it writes None."""
    event = kind(grams, by)

    with pytest.raises(EventDataError, match="which JSON does not know"):
        encode_event(event, event_type="weighed")
    assert encode_events([kind(1.0), event, kind(None)], kind) is None
    texts = encode_events([kind(1.0), kind(None)], kind)
    assert texts is None or texts == [
        encode_event(one, event_type="weighed") for one in (kind(1.0), kind(None))
    ]


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"b":', "}")])
def test_lists_and_objects_alone_are_nested_no_deeper(opening: str, closing: str) -> None:
    def deep(levels: int) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(
            '{"a":' + opening * (levels - 1) + "1" + closing * (levels - 1) + "}"
        )
        return data

    assert json.loads(encode_mapping(deep(DEPTH_MAX), event_type="t")) == deep(DEPTH_MAX)
    with pytest.raises(EventDataError, match="nested deeper"):
        encode_mapping(deep(DEPTH_MAX + 1), event_type="t")


def test_what_is_large_is_measured_in_bytes() -> None:
    fits = "é" * ((EVENT_BYTES_MAX - len('{"x":""}')) // 2)

    encode_mapping({"x": fits}, event_type="t")
    with pytest.raises(EventDataError, match="bytes of JSON"):
        encode_mapping({"x": fits + "é"}, event_type="t")


def test_an_event_without_named_fields_is_refused() -> None:
    with pytest.raises(EventDataError, match="named fields"):
        encode_event(Array(1), event_type="array")


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=[])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_values))
def test_data_is_either_refused_or_comes_back_equal(data: dict[str, Any]) -> None:
    try:
        encoded = encode_mapping(data, event_type="t")
    except EventDataError:
        return

    assert json.loads(encoded) == data
    assert "\\u0000" not in encoded.replace("\\\\", "")
