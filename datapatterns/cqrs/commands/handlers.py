"""Which function handles which command; what cannot work is refused when it is declared."""

import re
from collections.abc import Callable
from functools import partial
from inspect import (
    isasyncgenfunction,
    iscoroutinefunction,
    isgeneratorfunction,
    signature,
    unwrap,
)
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import msgspec

from datapatterns.cqrs.commands.contents import Validator
from datapatterns.errors import CommandHandlerError
from datapatterns.event_sourcing.content.shapes import (
    Decoder,
    classes_within,
    decoder_of,
    is_frozen,
)

if TYPE_CHECKING:
    from datapatterns.cqrs.commands.context import CommandContext

C = TypeVar("C")
R = TypeVar("R")

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.:-]{0,199}")
_VERSION_MAX: Final = 2**31 - 1


class CommandType(NamedTuple):
    """A command with what handles it.

    Attributes:
        name: What executions are recorded under.
        version: Of the shape of the command and of its result.
        decoder: Reads what it says.
        validators: Look at it before it is handled.
        returned: Reads what the handler has returned.
    """

    cls: type
    name: str
    version: int
    handler: Callable[[Any, "CommandContext"], object]
    decoder: Decoder
    validators: tuple[Validator, ...]
    returned: Decoder


class CommandHandlers:
    """The handlers of a program, one for each class of commands."""

    def __init__(self) -> None:
        self._by_class: dict[type, CommandType] = {}
        self._by_name: dict[str, CommandType] = {}

    def __repr__(self) -> str:
        return f"CommandHandlers({', '.join(sorted(self._by_name))})"

    def handles(
        self,
        command: type[C],
        *,
        name: str | None = None,
        version: int = 1,
        validate: Callable[[C], Any] | None = None,
    ) -> Callable[[Callable[[C, "CommandContext"], R]], Callable[[C, "CommandContext"], R]]:
        """Declare the function that handles commands of one class.

        It is a plain function of a command and a `CommandContext`, for ``execute`` and
        ``execute_async`` alike. It may run several times, so it does nothing but decide, write in
        the context's transaction and return plain data, or an object of the class that it is
        annotated to return.

        Args:
            command: A dataclass, a msgspec Struct, an attrs class or a pydantic model.
            name: What executions are recorded under, which must not change; unless given, the
                name of the class.
            version: Raise it when a command or its result gets another shape: then a repetition
                of what an older release has executed is not compared with it.
            validate: Returns what is wrong with a command, by field; in addition to a method
                ``validate`` of the class. It must not look anything up.

        Raises:
            CommandHandlerError: It is not such a function, the command is handled already, or is
                no such class.
        """
        if name is None:
            name = getattr(command, "__name__", type(command).__name__)
        _check_class(name, version, command)
        validators = _validators(name, command, validate)

        def declare(
            handler: Callable[[C, "CommandContext"], R],
        ) -> Callable[[C, "CommandContext"], R]:
            returned = _checked(name, command, handler)
            made = CommandType(
                command, name, version, handler, decoder_of(command), validators, returned
            )
            self._add(made)
            return handler

        return declare

    def of(self, command: object) -> CommandType:
        """Return what was declared for the class of ``command``.

        Raises:
            CommandHandlerError: Nothing was.
        """
        found = self._by_class.get(type(command))
        if found is None:
            raise CommandHandlerError(
                type(command).__qualname__,
                "nothing handles it; declare a function with handles(...), and import its module",
            )
        return found

    def _add(self, made: CommandType) -> None:
        known = self._by_class.get(made.cls) or self._by_name.get(made.name)
        if known is not None:
            # A module that is loaded again declares the same class again, as a new object.
            is_again = known.cls is not made.cls and _place(known.cls) == _place(made.cls)
            if not is_again:
                raise CommandHandlerError(
                    made.name,
                    f"{_place(known.handler)} handles {_place(known.cls)} under the name"
                    f" {known.name} already; keep one handler, and give each class a name of its"
                    " own",
                )
            del self._by_class[known.cls], self._by_name[known.name]
        self._by_class[made.cls] = self._by_name[made.name] = made


def _check_class(name: str, version: int, command: object) -> None:
    if not _NAME.fullmatch(name):
        raise CommandHandlerError(
            repr(name),
            "that cannot name a command; use 1 to 200 of A-Z, a-z, 0-9, _, ., : and -, beginning"
            " with a letter or _",
        )
    if not 1 <= version <= _VERSION_MAX:
        raise CommandHandlerError(name, f"version {version} is out of bounds; count from 1")
    if is_frozen(command) is None:
        raise CommandHandlerError(
            name, "make its class a dataclass, msgspec Struct, attrs class or pydantic model"
        )
    if msgspec.Raw in classes_within(command):
        raise CommandHandlerError(name, "it holds msgspec.Raw, which nobody reads; declare a dict")


def _validators(
    name: str, command: type, validate: Callable[[Any], Any] | None
) -> tuple[Validator, ...]:
    # Found as it is declared: a model of pydantic inherits another thing of this name.
    declared = [vars(base).get("validate") for base in command.__mro__]
    method = next((found for found in declared if found is not None), None)
    own: list[Validator] = [method] if isinstance(method, FunctionType) else []
    found = tuple(own) if validate is None else (*own, validate)
    for one in found:
        if _is_async(one):
            raise CommandHandlerError(
                name, "its validator is async, so calling it would run nothing of it; make it plain"
            )
    return found


def _checked(name: str, command: type, handler: Callable[..., object]) -> Decoder:
    """Return what reads the results of ``handler``."""
    if not callable(handler):
        raise CommandHandlerError(name, f"{handler!r} cannot be called; decorate a function")
    if _is_async(handler) or _is_generator(handler):
        raise CommandHandlerError(
            name,
            "its handler is async or yields, so calling it would run nothing of it; make it a plain"
            " function, which execute_async runs just as well",
        )
    try:
        declared = signature(handler, eval_str=True)
    except NameError as error:
        raise CommandHandlerError(
            name,
            f"its handler is annotated with what cannot be found ({error}); define that before, at"
            " the top of a module",
        ) from error
    try:
        declared.bind(None, None)
    except TypeError:
        raise CommandHandlerError(
            name, "its handler must take two arguments: the command and the context"
        ) from None
    first = next(iter(declared.parameters.values())).annotation
    # Another class that could be a command; what is broader than a class is left to be so.
    if is_frozen(first) is not None and not issubclass(command, first):
        raise CommandHandlerError(
            name, f"its handler takes a {first.__name__}; annotate it as {command.__name__}"
        )
    hint = declared.return_annotation
    try:
        return decoder_of(Any if hint is declared.empty else hint)
    except TypeError as error:
        raise CommandHandlerError(
            name, f"its handler returns what cannot be read back ({error}); return plain data"
        ) from error


def _is_async(function: object) -> bool:
    return any(iscoroutinefunction(one) or isasyncgenfunction(one) for one in _ways_in(function))


def _is_generator(function: object) -> bool:
    return any(map(isgeneratorfunction, _ways_in(function)))


def _ways_in(function: Any) -> tuple[object, ...]:  # noqa: ANN401 -- whatever can be called
    while isinstance(function, partial):
        function = function.func
    return function, getattr(function, "__call__", None), unwrap(function)  # noqa: B004 -- of a class


def _place(thing: Any) -> str:  # noqa: ANN401 -- a class or a function
    named = unwrap(thing.func if isinstance(thing, partial) else thing)
    return f"{named.__module__}.{getattr(named, '__qualname__', type(named).__qualname__)}"
