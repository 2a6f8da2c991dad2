"""What is declared so that it cannot work is refused when it is declared, not when it is sent."""

import asyncio
import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, NoReturn

import attrs
import msgspec
import pydantic
import pytest

from datapatterns.cqrs import CommandContext, CommandHandlers
from datapatterns.cqrs.commands.contents import digest_of
from datapatterns.cqrs.commands.executing import checked_command
from datapatterns.errors import CommandHandlerError, CommandInvalidError


@dataclass(frozen=True, slots=True)
class Open:
    owner: str
    cents: int = 0


class OpenStruct(msgspec.Struct, frozen=True):
    owner: str
    cents: Annotated[int, msgspec.Meta(ge=0)] = 0


@attrs.frozen
class OpenAttrs:
    owner: str
    cents: int = 0


class OpenModel(pydantic.BaseModel):
    owner: str
    cents: int = 0


KINDS: list[Any] = [Open, OpenStruct, OpenAttrs, OpenModel]


def handle(command: Any, context: CommandContext) -> None:  # noqa: ANN401 -- any of them
    raise NotImplementedError


def problems_of(handlers: CommandHandlers, command: object) -> dict[str, str]:
    with pytest.raises(CommandInvalidError) as invalid:
        checked_command(handlers.of(command), command, None)
    return dict(invalid.value.problems)


# Handlers ------------------------------------------------------------------------------------


async def waits(command: Open, context: CommandContext) -> None:
    raise NotImplementedError


async def waits_and_yields(command: Open, context: CommandContext) -> Any:  # noqa: ANN401
    yield command, context


def yields(command: Open, context: CommandContext) -> Any:  # noqa: ANN401
    yield command, context


def another(command: OpenStruct, context: CommandContext) -> None:
    raise NotImplementedError


def lacks_the_context(command: Open) -> None:
    raise NotImplementedError


def wants_more(command: Open, context: CommandContext, more: int) -> None:
    raise NotImplementedError


def nowhere(command: "Nowhere", context: CommandContext) -> None:  # type: ignore[name-defined]  # noqa: F821
    raise NotImplementedError


class Waiting:
    async def __call__(self, command: Open, context: CommandContext) -> None:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("handler", "advice"),
    [
        (waits, "make it a plain function, which execute_async runs"),
        (waits_and_yields, "make it a plain function"),
        (yields, "make it a plain function"),
        (Waiting(), "make it a plain function"),
        (partial(waits), "make it a plain function"),
        (another, "annotate it as Open"),
        (lacks_the_context, "two arguments: the command and the context"),
        (wants_more, "two arguments"),
        (nowhere, "cannot be found"),
        (7, "decorate a function"),
    ],
)
def test_what_cannot_handle_a_command_is_refused(handler: Any, advice: str) -> None:  # noqa: ANN401
    with pytest.raises(CommandHandlerError, match=f"command Open: .*{advice}"):
        CommandHandlers().handles(Open)(handler)


def test_whatever_can_be_called_with_a_command_and_a_context_handles_it() -> None:
    class Works:
        def __call__(self, command: Open, context: CommandContext) -> None:
            raise NotImplementedError

        def method(self, command: Open, context: CommandContext) -> None:
            raise NotImplementedError

    def wants(more: int, command: Open, context: CommandContext) -> None:
        raise NotImplementedError

    ways: list[Callable[..., None]] = [Works(), Works().method, partial(wants, 1), handle]
    for way in ways:
        handlers = CommandHandlers()
        assert handlers.handles(Open)(way) is way
        assert handlers.of(Open("ann")).handler is way


@pytest.mark.parametrize("kind", KINDS)
def test_a_command_is_any_class_that_can_be_an_event(kind: type[Any]) -> None:
    handlers = CommandHandlers()
    handlers.handles(kind)(handle)

    known = handlers.of(kind(owner="ann"))

    assert (known.name, known.version) == (kind.__name__, 1)
    assert checked_command(known, kind(owner="ann"), None).problems == ()


class Nothing:
    pass


class Raw(msgspec.Struct):
    data: msgspec.Raw


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        (Nothing, "make its class a dataclass"),
        (int, "make its class a dataclass"),
        (Open("ann"), "make its class a dataclass"),
        (Raw, "a dict"),
    ],
)
def test_what_has_no_fields_to_check_is_no_command(
    kind: Any,  # noqa: ANN401 -- whatever is declared
    advice: str,
) -> None:
    with pytest.raises(CommandHandlerError, match=advice):
        CommandHandlers().handles(kind)


@pytest.mark.parametrize("name", ["", "1st", "a b", "é", "x" * 201, "a'b"])
def test_a_name_that_cannot_be_stored_is_refused(name: str) -> None:
    with pytest.raises(CommandHandlerError, match="cannot name a command"):
        CommandHandlers().handles(Open, name=name)
    for version in (0, -1, 2**31):
        with pytest.raises(CommandHandlerError, match="count from 1"):
            CommandHandlers().handles(Open, version=version)


def test_a_command_has_one_handler_and_a_name_one_command() -> None:
    handlers = CommandHandlers()
    handlers.handles(Open)(handle)

    with pytest.raises(CommandHandlerError, match=r"test_command_handlers\.handle handles .*Open"):
        handlers.handles(Open, name="other")(handle)
    with pytest.raises(CommandHandlerError, match="already"):
        handlers.handles(OpenStruct, name="Open")(another)
    assert repr(handlers) == "CommandHandlers(Open)"


def test_a_module_that_is_loaded_again_may_declare_the_same_again() -> None:
    handlers, made = CommandHandlers(), list[type]()
    for _ in range(2):

        @dataclass
        class Again:
            name: str

        handlers.handles(Again)(handle)
        made.append(Again)

    first, second = made
    assert handlers.of(second("x")).cls is second
    with pytest.raises(CommandHandlerError, match="nothing handles it"):
        handlers.of(first("x"))


def test_an_object_of_a_subclass_is_another_command() -> None:
    handlers = CommandHandlers()
    handlers.handles(Open)(handle)

    @dataclass(frozen=True)
    class Opened(Open):
        pass

    with pytest.raises(CommandHandlerError, match=r"Opened: nothing handles it; declare"):
        handlers.of(Opened("ann"))


# What a command says -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Open, OpenStruct, OpenAttrs])
def test_a_field_that_is_not_as_declared_is_named_and_not_quoted(kind: type[Any]) -> None:
    handlers = CommandHandlers()
    handlers.handles(kind)(handle)

    problems = problems_of(handlers, kind(owner="ann", cents="secret"))

    assert list(problems) == ["cents"]
    assert "secret" not in problems["cents"]


def test_constraints_of_the_class_count_and_all_of_a_model_are_told() -> None:
    class Two(pydantic.BaseModel):
        cents: int = pydantic.Field(gt=0)
        owner: str = pydantic.Field(max_length=3)

    handlers = CommandHandlers()
    handlers.handles(OpenStruct)(handle)
    handlers.handles(Two)(handle)

    assert list(problems_of(handlers, OpenStruct("ann", -1))) == ["cents"]
    unchecked = Two.model_construct(cents=-1, owner="secret")
    assert list(problems_of(handlers, unchecked)) == ["cents", "owner"]


@dataclass(frozen=True)
class Book:
    at: datetime
    rooms: list[Open]
    note: float = 0.0


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"rooms": [Open("a", "x")]}, "rooms[0].cents"),  # type: ignore[arg-type] # as a caller might
        ({"rooms": [Open("a\0b")]}, ""),
        ({"note": float("nan")}, ""),
        ({"at": "2026-01-01"}, "at"),
        ({"rooms": (Open("a"),)}, None),
    ],
)
def test_the_place_of_what_is_wrong_is_told(change: dict[str, Any], field: str | None) -> None:
    handlers = CommandHandlers()
    handlers.handles(Book)(handle)
    book = replace(Book(datetime(2026, 1, 1, tzinfo=UTC), [Open("a")]), **change)

    if field is None:
        assert checked_command(handlers.of(book), book, None).problems == ()
    else:
        assert list(problems_of(handlers, book)) == [field]


# Validators ----------------------------------------------------------------------------------


def test_validators_find_what_is_wrong_by_field() -> None:
    @dataclass(frozen=True)
    class Pay:
        cents: int
        to: str

        def validate(self) -> Iterable[tuple[str, str]]:
            if self.cents <= 0:
                yield "cents", "must be positive"
            if not self.to:
                yield "to", "is missing"

    def known(pay: Pay) -> Mapping[str, str]:
        return {} if pay.to != "bob" else {"to": "is unknown"}

    handlers = CommandHandlers()
    handlers.handles(Pay, validate=known)(handle)

    assert problems_of(handlers, Pay(0, "")) == {"cents": "must be positive", "to": "is missing"}
    assert problems_of(handlers, Pay(1, "bob")) == {"to": "is unknown"}
    assert checked_command(handlers.of(Pay(1, "x")), Pay(1, "x"), None).problems == ()


def test_what_pydantic_calls_validate_is_none_of_ours_and_an_override_is() -> None:
    class Pay(pydantic.BaseModel):
        cents: int

    class Checked(Pay):
        def validate(self) -> list[tuple[str, str]]:  # type: ignore[override] # pydantic's is old
            return [("cents", "is wrong")]

    handlers = CommandHandlers()
    for kind in (Pay, Checked):
        handlers.handles(kind)(handle)

    assert handlers.of(Pay(cents=1)).validators == ()
    assert problems_of(handlers, Checked(cents=1)) == {"cents": "is wrong"}


def test_a_validator_that_would_not_run_is_refused() -> None:
    async def validate(_command: Open) -> None:
        raise NotImplementedError

    with pytest.raises(CommandHandlerError, match="its validator is async"):
        CommandHandlers().handles(Open, validate=validate)


@pytest.mark.parametrize("found", ["cents", True, 7, ["cents"], [("cents",)], [("cents", 7)], b"x"])
def test_a_validator_that_says_nothing_readable_is_told_so(found: Any) -> None:  # noqa: ANN401
    handlers = CommandHandlers()
    handlers.handles(Open, validate=lambda _: found)(handle)

    with pytest.raises(TypeError, match="return a mapping of fields"):
        checked_command(handlers.of(Open("ann")), Open("ann"), None)


def test_what_a_validator_raises_comes_out() -> None:
    def validate(_command: Open) -> NoReturn:
        raise LookupError("no such table")

    handlers = CommandHandlers()
    handlers.handles(Open, validate=validate)(handle)

    with pytest.raises(LookupError):
        checked_command(handlers.of(Open("ann")), Open("ann"), None)


# Errors and digests --------------------------------------------------------------------------


def test_an_invalid_command_tells_some_problems_and_keeps_all() -> None:
    error = CommandInvalidError("open", [(f"f{n}", "is wrong") for n in range(30)] + [("", "no")])

    again = pickle.loads(pickle.dumps(error))  # noqa: S301 -- our own

    assert "f9: is wrong; ...; correct it" in str(again)
    assert len(again.problems) == 31
    assert str(CommandInvalidError("open", [("", "no")])) == (
        "command open is invalid: no; correct it and send it again"
    )


class Tagged(pydantic.BaseModel):
    tags: set[str]
    link: pydantic.AnyUrl | None = None


class Several(msgspec.Struct):
    by_name: dict[str, int]
    tags: set[str]
    model: Tagged


def test_a_digest_is_of_what_is_said_in_whatever_order() -> None:
    names = [f"n{n}" for n in range(40)]

    def several(order: Iterable[str]) -> Several:
        return Several(dict.fromkeys(order, 1), set(order), Tagged(tags=set(order)))

    assert digest_of(several(names)) == digest_of(several(names[::-1]))
    forth, back = (Tagged(tags=set(order)) for order in (names, list(reversed(names))))
    assert digest_of(forth) == digest_of(back)
    assert digest_of(several(names)) != digest_of(several(names[1:]))
    link = Tagged.model_validate({"tags": ["a"], "link": "https://example.com"})
    assert digest_of(link) != digest_of(Tagged(tags={"a"}))
    assert len(digest_of(link)) == 32


def test_a_handler_may_be_declared_in_a_running_loop() -> None:
    async def declare() -> CommandHandlers:
        handlers = CommandHandlers()
        handlers.handles(Open)(handle)
        return handlers

    assert asyncio.run(declare()).of(Open("ann")).name == "Open"
