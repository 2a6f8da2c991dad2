"""Whatever is declared: reading is one step after the other, and a verdict is what happens."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapatterns.errors import EventShapeError, EventTypeError
from datapatterns.event_sourcing import EventTypes
from datapatterns.event_sourcing.evolution import lifting
from datapatterns.event_sourcing.evolution.evolving import Verdict

NAMES = ["a", "b", "c", "d", "e"]
VERSIONS = range(1, 5)


@dataclass(frozen=True)
class A:
    path: list[str]


@dataclass(frozen=True)
class B:
    path: list[str]


@dataclass(frozen=True)
class C:
    path: list[str]


CLASSES: dict[str, type] = {"a": A, "b": B, "c": C}

Declared = tuple[Any, ...]
Function = Callable[[dict[str, Any]], Any]


class Model:
    """What was declared, read step by step without any cleverness."""

    def __init__(self) -> None:
        self.classes: dict[str, int] = {}
        self.steps: dict[tuple[str, int], tuple[str, Any]] = {}
        self.renames: dict[str, tuple[str, int]] = {}
        self.drops: set[str] = set()

    def read(self, name: str, version: int, path: list[str]) -> list[tuple[str, list[str]]]:
        if name in self.drops:
            return []
        if name in self.renames and version >= self.renames[name][1]:
            return self.read(self.renames[name][0], version, path)
        if self.classes.get(name) == version:
            return [(name, path)]
        if version > self.classes.get(name, version):
            raise LookupError
        kind, what = self.steps[name, version]  # KeyError is a LookupError
        path = [*path, f"{name}{version}"]
        targets = [(name, version + 1)] if kind == "plain" else list(what.items())
        # A part that leads nowhere is an error, whether or not there is one.
        found = [self.read(at, at_version, path) for at, at_version in targets]
        found *= what if kind == "plain" else 1
        return [event for part in found for event in part]


def plain_upcaster(name: str, version: int, times: int) -> Function:
    def upcaster(old: dict[str, Any]) -> dict[str, Any] | list[dict[str, Any]] | None:
        old["path"].append(f"{name}{version}")  # it may: what it gets is its own
        if times == 1:
            return old
        return [old] * times if times else None

    return upcaster


def splitter(name: str, version: int, into: dict[str, int]) -> Function:
    def upcaster(old: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        old["path"].append(f"{name}{version}")
        return [(target, old) for target in into]

    return upcaster


names = st.sampled_from(NAMES)
versions = st.sampled_from(VERSIONS)
declarations = st.lists(
    st.one_of(
        st.tuples(st.just("class"), st.sampled_from(sorted(CLASSES)), versions),
        st.tuples(st.just("plain"), names, versions, st.sampled_from([1, 1, 1, 2, 0])),
        st.tuples(
            st.just("split"),
            names,
            versions,
            st.dictionaries(names, versions, min_size=1, max_size=3),
        ),
        st.tuples(st.just("rename"), names, names, versions),
        st.tuples(st.just("drop"), names),
    ),
    min_size=8,
    max_size=30,
)


def declare(types: EventTypes, model: Model, one: Declared) -> None:
    """Do it on both sides, unless it is refused."""
    kind, name, *rest = one
    try:
        if kind == "class":
            types.event(name, version=rest[0])(CLASSES[name])
            model.classes[name] = rest[0]
        elif kind == "drop":
            types.dropped(name, reason="x")
            model.drops.add(name)
        elif kind == "rename":
            types.renamed(name, rest[0], from_version=rest[1])
            model.renames[name] = (rest[0], rest[1])
        elif (name, rest[0]) in model.steps:
            return
        elif kind == "plain":
            types.upcast(name, rest[0])(plain_upcaster(name, rest[0], rest[1]))
            model.steps[name, rest[0]] = ("plain", rest[1])
        else:
            types.upcast(name, rest[0], into=rest[1])(splitter(name, rest[0], rest[1]))
            model.steps[name, rest[0]] = ("split", rest[1])
    except EventTypeError:
        return


def check(steps: list[Declared]) -> None:
    types, model = EventTypes(), Model()
    for one in steps:
        declare(types, model, one)
        # What is compiled now must not stay.
        with suppress(EventShapeError, EventTypeError):
            types.decode("a", 1, {"path": []})
    for name in NAMES:
        for version in range(1, 6):
            data: dict[str, Any] = {"path": []}
            verdict = types.fate(name, version).verdict
            try:
                expected = [CLASSES[n](path) for n, path in model.read(name, version, [])]
            except LookupError:
                assert verdict in {Verdict.UNKNOWN, Verdict.TOO_NEW, Verdict.NO_UPCASTER}
                with pytest.raises((EventShapeError, EventTypeError)):
                    types.decode(name, version, data)
                continue
            assert verdict in {Verdict.READABLE, Verdict.DROPPED}
            assert types.decode(name, version, data) == expected
            assert types.decode_json(name, version, msgspec.json.encode(data).decode()) == expected
            assert data == {"path": []}
            for event in expected:
                assert name in types.stored_names(type(event))


@given(declarations)
def test_reading_is_one_step_after_the_other(steps: list[Declared]) -> None:
    check(steps)


def test_without_copies_between_the_steps_it_would_not_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifting, "private", lambda value: value)

    with pytest.raises(AssertionError):
        check([("class", "a", 3), ("plain", "a", 1, 2), ("plain", "a", 2, 1)])


def test_with_what_was_compiled_before_it_would_not_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EventTypes, "_changed", lambda _self: None)

    with pytest.raises((AssertionError, EventShapeError)):
        check([("class", "a", 1), ("class", "a", 2), ("plain", "a", 1, 1)])
