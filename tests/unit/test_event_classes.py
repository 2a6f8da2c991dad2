"""Events may be of four kinds of classes; what holds for one holds for all."""

import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from subprocess import run
from typing import Any
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest

from datapatterns.errors import EventDataError, EventShapeError, EventTypeError
from datapatterns.event_sourcing import EventTypes
from datapatterns.event_sourcing.content.encoding import encode

AT = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Line:
    cents: int


class LineModel(pydantic.BaseModel, frozen=True):
    cents: int


@dataclass(frozen=True)
class AsDataclass:
    key: UUID
    at: datetime
    weight: float | None = None
    lines: dict[int, Line] = field(default_factory=dict)
    model: LineModel | None = None


class AsStruct(msgspec.Struct, frozen=True):
    key: UUID
    at: datetime
    weight: float | None = None
    lines: dict[int, Line] = {}
    model: LineModel | None = None


@attrs.frozen
class AsAttrs:
    key: UUID
    at: datetime
    weight: float | None = None
    lines: dict[int, Line] = attrs.Factory(dict)
    model: LineModel | None = None


class AsModel(pydantic.BaseModel, frozen=True):
    key: UUID
    at: datetime
    weight: float | None = None
    lines: dict[int, Line] = {}
    model: LineModel | None = None


KINDS: list[Any] = [AsDataclass, AsStruct, AsAttrs, AsModel]


def declared(cls: Any) -> EventTypes:  # noqa: ANN401 -- one of the kinds
    types = EventTypes()
    types.event("kind.happened", version=2)(cls)
    types.upcast("kind.happened", 1)(lambda old: {**old, "at": "2026-01-01T00:00:00Z"})
    return types


@pytest.mark.parametrize("cls", KINDS)
def test_each_kind_comes_back_equal_and_typed(cls: Any) -> None:  # noqa: ANN401
    types = declared(cls)
    for weight in (None, 0.1, 1e22, -0.0):
        event = cls(UUID(int=7), AT, weight, {1: Line(5)}, LineModel(cents=1)) if (
            cls is not AsModel
        ) else cls(
            key=UUID(int=7), at=AT, weight=weight, lines={1: Line(5)}, model=LineModel(cents=1)
        )  # fmt: skip

        encoded = encode(event, types=types)
        decoded: Any
        [decoded] = types.decode_json(encoded.name, encoded.schema_version, encoded.data)

        assert decoded == event
        assert type(decoded) is cls
        assert type(decoded.lines[1]) is Line
        assert type(decoded.model) is LineModel


@pytest.mark.parametrize("cls", KINDS)
def test_each_kind_is_lifted_from_older_shapes(cls: Any) -> None:  # noqa: ANN401
    lifted: Any
    [lifted] = declared(cls).decode("kind.happened", 1, {"key": str(UUID(int=7))})

    assert (type(lifted), lifted.at) == (cls, AT)


@pytest.mark.parametrize("cls", KINDS)
@pytest.mark.parametrize("weight", [float("nan"), float("-inf")])
def test_nan_does_not_become_nothing(cls: Any, weight: float) -> None:  # noqa: ANN401
    event = cls(key=UUID(int=7), at=AT, weight=weight)

    with pytest.raises(EventDataError, match=f"weight is {weight}"):
        encode(event, types=declared(cls))


@pytest.mark.parametrize("cls", KINDS)
def test_what_does_not_fit_is_told_without_the_data(cls: Any) -> None:  # noqa: ANN401
    stored = '{"key": "secret", "at": "2026-01-01T00:00:00Z", "lines": {"secret": "secret"}}'

    with pytest.raises(EventShapeError) as refused:
        declared(cls).decode_json("kind.happened", 2, stored)

    assert "key" in str(refused.value)
    assert "secret" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


@attrs.frozen
class Checked:
    size: int = attrs.field(validator=attrs.validators.lt(1000))


class CheckedModel(pydantic.BaseModel, frozen=True):
    size: int

    @pydantic.field_validator("size")
    @classmethod
    def small(cls, value: int) -> int:
        if value > 1000:
            raise ValueError(f"{value} is too much")
        return value


@pytest.mark.parametrize("cls", [Checked, CheckedModel])
def test_what_a_class_itself_refuses_is_told_without_the_data(cls: Any) -> None:  # noqa: ANN401
    types = EventTypes()
    types.event("kind.checked")(cls)

    with pytest.raises(EventShapeError, match=r"ValueError|value_error") as refused:
        types.decode_json("kind.checked", 1, '{"size": 4711}')

    assert "4711" not in str(refused.value)


def test_what_may_change_is_no_event() -> None:
    @attrs.define
    class Attrs:
        a: int

    class Model(pydantic.BaseModel):
        a: int

    @dataclass
    class Data:
        a: int

    for cls in (Attrs, Model, Data):
        with pytest.raises(EventTypeError, match="frozen=True"):
            EventTypes().event("kind.changing")(cls)
    with pytest.raises(EventTypeError, match="is no dataclass"):
        EventTypes().event("kind.none")(int)


def test_a_model_made_without_checks_is_refused_at_the_append() -> None:
    wrong = AsModel.model_construct(key=UUID(int=1), at="soon")

    with pytest.raises(EventDataError, match=r"at `\$\.at`"):
        encode(wrong, types=declared(AsModel))


def test_nobody_imports_what_is_not_used() -> None:
    code = (
        "import sys, datapatterns.event_sourcing as e, datapatterns.testing;"
        "sys.exit('pydantic' in sys.modules)"
    )
    assert run([sys.executable, "-c", code], check=False).returncode == 0  # noqa: S603 -- our own


class Sparse(msgspec.Struct, frozen=True, omit_defaults=True):
    note: str | None = None
    weight: float | None = None


def test_nan_is_found_where_nothing_is_left_out() -> None:
    """There is one field that is None, and one null; but they are not the same."""
    types = EventTypes()
    types.event("kind.sparse")(Sparse)

    assert encode(Sparse(), types=types).data == "{}"
    with pytest.raises(EventDataError, match="weight is nan"):
        encode(Sparse(weight=float("nan")), types=types)


@pytest.mark.parametrize("note", ["null", "\\u0000", "1" * 19, "[" * 64, "é" * 10])
def test_a_text_that_only_looks_dangerous_is_stored_as_it_is(note: str) -> None:
    types = EventTypes()
    types.event("kind.sparse")(Sparse)

    [decoded] = types.decode_json("kind.sparse", 1, encode(Sparse(note), types=types).data)

    assert decoded == Sparse(note)
