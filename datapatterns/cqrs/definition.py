"""What an application declares: which events change which rows, and how."""

import inspect
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Final, Literal, TypeAlias, TypeVar, get_args, overload

from datapatterns.cqrs.messages.drafts import Draft, send
from datapatterns.errors import ProjectionDefinitionError
from datapatterns.event_sourcing.recorded import RecordedEvent

E = TypeVar("E")
Apply = Callable[[Any, Any, E, RecordedEvent], object]

OnPoison: TypeAlias = Literal["stop", "park", "skip"]
"""What becomes of an event that cannot be applied."""

_RUN_LATER = (inspect.iscoroutinefunction, inspect.isasyncgenfunction, inspect.isgeneratorfunction)
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")


class Outcome(Enum):
    """What a handler may return, instead of nothing."""

    DELETE = "delete"


DELETE: Final = Outcome.DELETE
"""Returned by a handler whose row is to go; a later event with its key begins a new one."""


@dataclass(frozen=True, slots=True)
class Handler:
    """One ``@on``: an event's class, the rows it concerns, and what it does to each."""

    event_class: type
    keys: Callable[[Any, RecordedEvent], Iterable[Hashable]] | None
    apply: Callable[[Any, Any, Any, RecordedEvent], object]
    into: type | None = None


@dataclass(frozen=True, slots=True)
class OneKey:
    """The ``keys`` of a handler that concerns one row at most."""

    key: Callable[[Any, RecordedEvent], Hashable]

    def __call__(self, event: object, meta: RecordedEvent) -> tuple[Hashable, ...]:
        """Return no key or one."""
        only = self.key(event, meta)
        return () if only is None else (only,)


@overload
def on(event_class: type[E], /) -> Callable[[Apply[E]], Handler]: ...
@overload
def on(
    event_class: type[E],
    /,
    *,
    key: Callable[[E, RecordedEvent], Hashable],
    into: type | None = None,
) -> Callable[[Apply[E]], Handler]: ...
@overload
def on(
    event_class: type[E],
    /,
    *,
    keys: Callable[[E, RecordedEvent], Iterable[Hashable]],
    into: type | None = None,
) -> Callable[[Apply[E]], Handler]: ...
def on(
    event_class: type[E],
    /,
    *,
    key: Callable[[E, RecordedEvent], Hashable] | None = None,
    keys: Callable[[E, RecordedEvent], Iterable[Hashable]] | None = None,
    into: type | None = None,
) -> Callable[[Apply[E]], Handler]:
    """Declare that a method is what events of ``event_class`` do.

    The method is called as ``method(self, row, event, meta)``: ``row`` is the row to change, for
    a `RedisProjection` the changes to add to; ``meta`` is the event as recorded, with its
    position, stream, time and metadata. It must depend on nothing else, for a rebuild runs it
    again. Several methods may share the name ``_``; under any other, a subclass may override it.

    Args:
        event_class: What ``@event`` made; subclasses do not count.
        key: The primary key of the one row concerned (a tuple if it has several columns), or
            None if this event concerns no row.
        keys: The same for several rows; a key that comes twice counts once.
        into: The mapped class of the row, where a projection writes several tables.

    Raises:
        ProjectionDefinitionError: The method is a coroutine or a generator, which nobody runs.
    """

    def declare(method: Apply[E]) -> Handler:
        if any(runs_later(method) for runs_later in _RUN_LATER):
            raise ProjectionDefinitionError(
                getattr(method, "__qualname__", "a method"),
                "nobody awaits or iterates over a handler, so nothing of it would run; make it a"
                " plain function, which changes its row and ends",
            )
        return Handler(event_class, keys if key is None else OneKey(key), method, into)

    return declare


class _Body(dict[str, Any]):
    """A class body that keeps every handler, although they share the name ``_``."""

    def __init__(self) -> None:
        super().__init__()
        self.handlers: list[tuple[str, Handler]] = []

    def __setitem__(self, name: str, value: Any) -> None:  # noqa: ANN401 -- anything has a name
        if isinstance(value, Handler):
            self.handlers.append((name, value))
        super().__setitem__(name, value)


class _ProjectionType(type):
    @classmethod
    def __prepare__(cls, _name: str, _bases: tuple[type, ...], /, **_options: object) -> _Body:
        return _Body()

    def __new__(
        cls, name: str, bases: tuple[type, ...], body: Mapping[str, Any], /, **options: object
    ) -> "_ProjectionType":
        own = body.handlers if isinstance(body, _Body) else []
        return super().__new__(cls, name, bases, {**body, "own_handlers": tuple(own)}, **options)


class AnyProjection(metaclass=_ProjectionType):
    """What all projections have; declare a `Projection`, `SetProjection` or `RedisProjection`.

    Attributes:
        is_splittable: Whether several workers can have segments of it.
        messages: Whether its methods may emit messages.
    """

    is_splittable: ClassVar[bool] = True
    messages: ClassVar[bool] = False
    own_handlers: ClassVar[tuple[tuple[str, Handler], ...]]
    handlers: ClassVar[tuple[Handler, ...]] = ()
    name: ClassVar[str]
    version: ClassVar[int]
    page_events: ClassVar[int] = 5_000
    """How many events a transaction applies at most, unless its runner says otherwise."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.handlers = tuple(cls._inherited())

    @classmethod
    def _inherited(cls) -> Iterator[Handler]:
        # Each class counts once, however many ways lead to it, and a name means what it does for
        # any method: the most derived class that has it decides. Nobody overrides an underscore.
        derived_first = cls.__mro__
        for place in reversed(range(len(derived_first))):
            for name, handler in vars(derived_first[place]).get("own_handlers", ()):
                derived = derived_first[:place]
                if name == "_" or not any(name in vars(other) for other in derived):
                    yield handler

    @classmethod
    def _declare(cls, name: str | None, version: int) -> None:
        cls.name = name or _snake_case(cls.__name__)
        cls.version = version
        if not _NAME.fullmatch(cls.name):
            raise ProjectionDefinitionError(
                cls.name, "the name must be 1 to 63 of a-z, 0-9 and _, beginning with a letter"
            )
        if not 1 <= version < 2**31:
            raise ProjectionDefinitionError(cls.name, "count the version from 1")
        for base in cls.__mro__:
            if not isinstance(base, _ProjectionType) and _declares_handlers(base):
                raise ProjectionDefinitionError(
                    cls.name,
                    f"{base.__name__} is no projection, so those of its methods that share a name"
                    " are lost; declare them here, or in a projection to inherit from",
                )

    @classmethod
    def _require_handlers(cls) -> None:
        if not cls.handlers:
            raise ProjectionDefinitionError(cls.name, "declare at least one method with @on")


class TableProjection(AnyProjection):
    """What projections into tables have, whether they fold in Python or run statements."""

    tables: ClassVar[tuple[type, ...]]
    on_poison: ClassVar[OnPoison] = "stop"

    @classmethod
    def _declare_tables(cls, into: type | tuple[type, ...], on_poison: OnPoison | None) -> None:
        cls.tables = into if isinstance(into, tuple) else (into,)
        cls.on_poison = cls.on_poison if on_poison is None else on_poison
        if cls.on_poison not in get_args(OnPoison):
            raise ProjectionDefinitionError(
                cls.name, f"on_poison is one of {', '.join(get_args(OnPoison))}"
            )
        if not cls.tables or len(set(cls.tables)) < len(cls.tables):
            raise ProjectionDefinitionError(cls.name, "name each table once, and at least one")


class Projection(TableProjection):
    """A read model in tables of the application, which are nobody else's to write.

    Declared as ``class SalesByProduct(Projection, into=ProductSales, version=1)``. Its methods
    get rows that have the attributes of the mapped class, but are plain values: a new row holds
    its key, the Python-side defaults of its columns, and None otherwise.

    With several tables, ``into=(ProductSales, DaySales)``, each method says which row it is for:
    ``@on(ItemScanned, into=DaySales, key=...)``. They are written in this order, so one may refer
    to those before it.

    Attributes:
        tables: The mapped classes of its tables.
        name: What its checkpoint is kept under; unless given, the class's name in snake case.
        version: To be raised with every change of what the methods do; then rebuild.
        on_poison: What becomes of an event that cannot be applied: the projection stops before
            it; or this event and later ones of its key are parked; or it is skipped and recorded.
        inline: Whether the layer's store can keep it in the transaction of each append, which
            begins with `Projections.make_inline`.
        messages: Whether its methods may emit messages.

    What is not said of a subclass is as its base class says; of another one the projection stops,
    is not kept inline, and emits nothing.

    Raises:
        ProjectionDefinitionError: A method has no key or no table, or the name or version cannot
            be used.
    """

    inline: ClassVar[bool] = False

    def __init_subclass__(
        cls,
        *,
        into: type | tuple[type, ...],
        version: int,
        name: str | None = None,
        on_poison: OnPoison | None = None,
        inline: bool | None = None,
        messages: bool | None = None,
    ) -> None:
        super().__init_subclass__()
        cls.inline = cls.inline if inline is None else inline
        cls.messages = cls.messages if messages is None else messages
        cls._declare(name, version)
        cls._require_handlers()
        cls._declare_tables(into, on_poison)
        cls._check_tables()
        for handler in cls.handlers:
            if handler.keys is None:
                raise ProjectionDefinitionError(
                    cls.name,
                    f"@on({handler.event_class.__name__}) does not say which row it concerns;"
                    " give key= or keys=",
                )

    def emit(self, topic: str, payload: object, *, key: str | None = None) -> None:
        """Send a message, if and when what the method does to its row is committed.

        Called by the methods of a projection that is declared with ``messages=True``. It is sent
        once for each event and row, by the live version only: not by a replay of any kind.

        Args:
            topic: What it is about, for whoever passes it on.
            payload: What is stored as JSON, of at most `MESSAGE_BYTES_MAX` bytes.
            key: Messages of one key that come from one row are passed on in their order; unless
                given, all that come from one row are.

        Raises:
            MessageRefusedError: It cannot be sent as it is.
            ProjectionDefinitionError: It is no method of a projection with messages that calls.
        """
        if not self.messages:
            raise ProjectionDefinitionError(
                self.name, "it emits messages; declare it with messages=True"
            )
        send(self, self.name, Draft.of(self.name, topic, payload, key=key))

    @classmethod
    def _check_tables(cls) -> None:
        used = {cls.table_of(handler) for handler in cls.handlers}
        for unused in set(cls.tables) - used:
            raise ProjectionDefinitionError(
                cls.name, f"no method writes {unused.__name__}; leave it out of into="
            )

    @classmethod
    def table_of(cls, handler: Handler) -> type:
        """Return the mapped class of the rows that ``handler`` changes.

        Raises:
            ProjectionDefinitionError: It does not say, or names a table that is not declared.
        """
        into = handler.into
        if into is None and len(cls.tables) == 1:
            return cls.tables[0]
        if into is None or into not in cls.tables:
            told = "does not say which of the tables" if into is None else "names another table"
            raise ProjectionDefinitionError(
                cls.name,
                f"@on({handler.event_class.__name__}) {told}; give into= one of"
                f" {', '.join(table.__name__ for table in cls.tables)}",
            )
        return into


class RedisProjection(AnyProjection):
    """A read model in hashes, sorted sets and JSON documents of Redis.

    Declared as ``class Dashboard(RedisProjection, version=1)``. Its methods get `RedisChanges`.
    Versions have keys of their own: the next one is built beside the one that is read.

    Attributes:
        on_poison: What becomes of an event that cannot be applied: the projection stops before
            it, or it is skipped as a whole and recorded.

    Raises:
        ProjectionDefinitionError: A method has a key, or the name or version cannot be used.
    """

    # All of it moves with one checkpoint, in one slot of a cluster.
    is_splittable: ClassVar[bool] = False

    on_poison: ClassVar[OnPoison] = "stop"

    def __init_subclass__(
        cls, *, version: int, name: str | None = None, on_poison: OnPoison | None = None
    ) -> None:
        super().__init_subclass__()
        cls.on_poison = cls.on_poison if on_poison is None else on_poison
        cls._declare(name, version)
        cls._require_handlers()
        if cls.on_poison not in ("stop", "skip"):
            raise ProjectionDefinitionError(
                cls.name,
                "in Redis an event has no key that could be parked; on_poison is stop or skip",
            )
        for handler in cls.handlers:
            if handler.keys is not None:
                raise ProjectionDefinitionError(
                    cls.name, "in Redis a method names what it changes; leave key= and keys= out"
                )


def _declares_handlers(cls: type) -> bool:
    return any(isinstance(value, Handler) for value in vars(cls).values())


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
