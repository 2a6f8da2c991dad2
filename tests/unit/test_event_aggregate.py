from dataclasses import dataclass
from types import new_class
from typing import ClassVar

import pytest

from datapatterns.errors import AggregateError
from datapatterns.event_sourcing import Aggregate, applies


@dataclass(frozen=True)
class Put:
    name: str


@dataclass(frozen=True)
class Taken:
    name: str


@dataclass(frozen=True)
class Closed:
    pass


class Box(Aggregate, category="box"):
    SIZE: ClassVar[int] = 2
    names: list[str] = []  # noqa: RUF012 -- each object gets its own
    closed = False

    @applies
    def _(self, e: Put) -> None:
        self.names.append(e.name)

    @applies
    def _(self, e: Taken) -> None:
        self.names.remove(e.name)

    def put(self, name: str) -> None:
        if len(self.names) < self.SIZE:
            self.emit(Put(name))


class Lid(Box, category="lid"):
    @applies
    def _closed(self, e: Closed) -> None:
        self.closed = isinstance(e, Closed)


def test_emitting_changes_the_state_and_is_kept_for_saving() -> None:
    box = Box("1")

    box.put("a")
    box.put("b")
    box.put("too many")

    assert box.names == ["a", "b"]
    assert (box.version, box.unsaved) == (2, (Put("a"), Put("b")))
    assert "box-1 at version 2" in repr(box)


def test_objects_do_not_share_state() -> None:
    Box("1").put("a")

    assert Box("1").names == Box.names == []


def test_a_subclass_adds_handlers() -> None:
    lid = Lid("1")

    lid.emit(Put("a"))
    lid.emit(Closed())

    assert (lid.names, lid.closed, lid.stream.category) == (["a"], True, "lid")


def test_an_event_without_a_handler_is_refused_and_not_kept() -> None:
    box = Box("1")

    with pytest.raises(AggregateError, match="handler for Closed"):
        box.emit(Closed())

    assert (box.version, box.unsaved) == (0, ())


def test_one_handler_may_take_several_events() -> None:
    class Count(Aggregate, category="count"):
        n = 0

        @applies
        def happened(self, e: Put | Taken) -> None:
            self.n += len(e.name)

    count = Count("1")
    count.emit(Put("ab"))
    count.emit(Taken("c"))

    assert count.n == 3


def test_an_aggregate_without_a_category_has_no_stream() -> None:
    class Nowhere(Aggregate):
        pass

    with pytest.raises(AggregateError, match="category"):
        Nowhere("1")


def test_handlers_that_are_not_clear_are_refused_with_the_class() -> None:
    with pytest.raises(AggregateError, match="two handlers"):

        class Twice(Aggregate):
            @applies
            def _(self, e: Put) -> None: ...

            @applies
            def _(self, e: Put | Taken) -> None: ...

    with pytest.raises(AggregateError, match="without the class"):

        class Untyped(Aggregate):
            @applies
            def _(self, e) -> None: ...  # type: ignore[no-untyped-def] # noqa: ANN001 -- the point

    with pytest.raises(AggregateError, match="cannot be found"):

        class Unknown(Aggregate):
            @applies
            def _(self, e: "NoSuchEvent") -> None: ...  # type: ignore[name-defined] # noqa: F821


def test_a_bad_category_is_refused_with_the_class() -> None:
    with pytest.raises(ValueError, match="category"):

        class Bad(Aggregate, category="a-b"):
            pass


def test_of_two_bases_the_one_that_overrides_a_handler_wins() -> None:
    class Plain(Box):
        pass

    class Loud(Box):
        @applies
        def _(self, e: Put) -> None:
            self.names.append(e.name.upper())

    class Both(Plain, Loud):
        pass

    both = Both("1")
    both.emit(Put("a"))

    assert both.names == ["A"]


@pytest.mark.parametrize("name", ["category", "snapshot_version", "stream", "unsaved", "version"])
def test_state_may_not_take_a_name_that_every_aggregate_has(name: str) -> None:
    def annotated(body: dict[str, object]) -> None:
        body["__annotations__"] = {name: int}

    def given(body: dict[str, object]) -> None:
        body[name] = 1

    for fill in (annotated, given):
        with pytest.raises(AggregateError, match=f"declares {name}.*call it otherwise"):
            new_class("Other", (Box,), exec_body=fill)


@dataclass(frozen=True)
class Packed:
    names: list[str]


class Crate(Aggregate, category="crate"):
    names: list[str] = []  # noqa: RUF012 -- each object gets a copy

    @applies
    def _(self, e: Packed) -> None:
        self.names = e.names

    @applies
    def _(self, e: Put) -> None:
        self.names.append(e.name)
        if e.name == "box":
            self.emit(Put("lid"))


def test_who_goes_on_with_an_event_does_not_change_the_state() -> None:
    crate, event = Crate("7"), Packed(["a"])
    crate.emit(event)

    event.names.append("b")

    assert crate.names == ["a"]
    assert crate.unsaved == (Packed(["a"]),)


def test_an_event_cannot_happen_while_another_is_applied() -> None:
    crate = Crate("7")

    with pytest.raises(AggregateError, match="emits Put while it applies an event"):
        crate.emit(Put("box"))

    assert crate.unsaved == ()
