"""Functions whose results are kept."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, get_type_hints

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from datapatterns.cache_aside.auditing import CacheAudit, nobody
from datapatterns.cache_aside.keys import Key, entry_of
from datapatterns.cache_aside.local_tier import NOT_KEPT, LocalTier, nothing_served
from datapatterns.cache_aside.steps import Wanted
from datapatterns.cache_aside.tags import checked_tags
from datapatterns.errors import SettingsError

P = ParamSpec("P")
T = TypeVar("T")


class Forgetful(Protocol):
    """The part of a cache that forgets."""

    def invalidate(self, *keys: Key) -> None:
        """Forget ``keys`` now."""
        ...

    def invalidate_in(self, writer: Connection | Session, *keys: Key) -> None:
        """Forget ``keys`` if and when the transaction of ``writer`` commits."""
        ...


class Calls:
    """What the calls of one function are kept under.

    A call's key is its arguments: one argument is the key itself, several are a tuple, in the
    order of the parameters and with defaults filled in.

    Args:
        load: The function; its first parameter is the connection.
        cache: The name of the cache.
        tags: Called with the arguments; what the result depends on besides.

    Raises:
        SettingsError: The function takes any keywords.
    """

    def __init__(
        self, load: Callable[..., Any], cache: str, tags: Callable[..., Iterable[str]] | None
    ) -> None:
        self.key = key_of_calls(load)
        self._cache = cache
        self._tags = tags
        parameters = [*inspect.signature(load).parameters.values()][1:]
        self._count = len(parameters) if all(map(_is_plain, parameters)) else None

    def wanted(self, *args: Any, **kwargs: Any) -> Wanted:  # noqa: ANN401 -- whatever it takes
        """Return the entry of a call, and its tags."""
        entry = entry_of(self._cache, self.key(*args, **kwargs))
        tags = () if self._tags is None else checked_tags(self._tags(*args, **kwargs))
        return Wanted(entry, tags)

    def wanted_of(self, key: Key) -> Wanted:
        """Return the entry of the call with this key, and its tags.

        Raises:
            SettingsError: Keys of the function do not tell its arguments.
        """
        return self.wanted(*self.arguments(key))

    def arguments(self, key: Key) -> tuple[Any, ...]:
        """Return the arguments of the call with this key.

        Raises:
            SettingsError: Keys of the function do not tell its arguments.
        """
        if self._count is None:
            raise SettingsError("get_many", "its function has parameters without a fixed place")
        arguments = (key,) if self._count == 1 else key
        if not isinstance(arguments, tuple) or len(arguments) != self._count:
            raise SettingsError("get_many", f"each key is to be a tuple of {self._count} arguments")
        return arguments


class CachedFunction(Generic[P, T]):
    """A function that reads through a cache; call it without ``conn``.

    Its key is its arguments, see `Calls`.

    Attributes:
        load: The function itself: what it reads with a connection of yours is not cached, and
            shows your own uncommitted writes.
    """

    def __init__(  # noqa: PLR0913 -- what a cache does for it, each by itself
        self,
        load: Callable[Concatenate[Connection, P], T],
        *,
        calls: Calls,
        cache: Forgetful,
        read: Callable[..., T],
        read_within: Callable[..., T],
        read_many: Callable[..., dict[Any, T]],
        audit: Callable[..., CacheAudit[T]],
        local: LocalTier | None,
    ) -> None:
        functools.update_wrapper(self, load)
        self.load = load
        self._calls = calls
        self._cache = cache
        self._local = local
        self._served: Callable[[tuple[Any, ...]], T] = nothing_served
        if local is not None:
            self._served = local.served
        self._read = read
        self._read_within = read_within
        self._read_many = read_many
        self._audit = audit
        self._load_many: Callable[[Connection, list[Any]], Mapping[Any, T]] = self._load_each

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what the function returns, from the cache if it can."""
        if not kwargs and (kept := self._served(args)) is not NOT_KEPT:
            return kept
        return self._read_through(args, kwargs)

    def _read_through(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        wanted = self._calls.wanted(*args, **kwargs)
        load: Callable[..., T] = self.load
        value = self._read(wanted, lambda conn: load(conn, *args, **kwargs))
        if self._local is not None and not kwargs:
            self._local.name_call(args, wanted.entry)
        return value

    def within(self, transaction: Connection | Session, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what the function returns in a transaction that may have written itself.

        What it has written, as its invalidations tell, is loaded on its own connection and not
        kept. If it sees one moment only, above READ COMMITTED, everything is loaded there, and
        kept for others only if it cannot be older than an invalidation. The rest comes from the
        cache.
        """
        wanted = self._calls.wanted(*args, **kwargs)
        return self._read_within(wanted, lambda conn: self.load(conn, *args, **kwargs), transaction)

    def key(self, *args: P.args, **kwargs: P.kwargs) -> Key:
        """Return the key of a call."""
        return self._calls.key(*args, **kwargs)

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Load the result anew and keep it, however fresh the one is that is there.

        Others are served the old one meanwhile. If somebody else has begun to load it, theirs is
        waited for.
        """
        wanted = self._calls.wanted(*args, **kwargs)
        return self._read(wanted, lambda conn: self.load(conn, *args, **kwargs), anew=True)

    def many(
        self, load: Callable[[Connection, list[Any]], Mapping[Any, T]]
    ) -> Callable[[Connection, list[Any]], Mapping[Any, T]]:
        """Let ``load`` find the results of several calls at once, for `get_many`.

        It is given a connection and keys, and returns results by key; None is remembered for those
        that it leaves out.
        """
        self._load_many = load
        return load

    def get_many(self, keys: Iterable[Any]) -> dict[Any, T]:
        """Return the results of several calls by their keys; see `Cache.get_many`.

        What is missing is loaded by the function that `many` named, or else one by one.

        Raises:
            SettingsError: A key does not tell the arguments of a call.
        """
        return self._read_many(keys, self._load_many)

    def audit(
        self,
        *,
        limit: int = 1_000,
        repair: bool = False,
        on_checked: Callable[[int], object] = nobody,
    ) -> CacheAudit[T]:
        """Compare entries with the database; what is called wrong is certain.

        Whatever had been committed before it was loaded has been sent to Redis by then. A TTL, a
        lost server or values past their time are no violation.

        Args:
            limit: How many entries to look at, in no certain order.
            repair: Forget those that are wrong.
            on_checked: Called now and then with how many entries more were looked at.

        Raises:
            ServerUnavailableError: Redis did not answer.
            SettingsError: Keys of the function do not tell its arguments.
        """
        found = self._audit(self._load_one, limit, on_checked)
        if repair and found.violations:
            self._cache.invalidate(*(each.key for each in found.violations))
        return found

    def _load_one(self, conn: Connection, key: Key) -> T:
        load: Callable[..., T] = self.load
        return load(conn, *self._calls.arguments(key))

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Forget the result of this call now."""
        self._cache.invalidate(self._calls.key(*args, **kwargs))

    def invalidate_in(
        self, writer: Connection | Session, *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Forget the result of this call if and when the transaction of ``writer`` commits."""
        self._cache.invalidate_in(writer, self._calls.key(*args, **kwargs))

    def _load_each(self, conn: Connection, keys: list[Any]) -> dict[Any, T]:
        return {key: self._load_one(conn, key) for key in keys}


def value_type_of(load: Callable[..., Any]) -> object:
    """Return what ``load`` says it returns; plain data if it does not say.

    Raises:
        SettingsError: It names a type that cannot be found where it is defined.
    """
    written = getattr(load, "__annotations__", {})
    # Nothing but the result is looked up: parameters may have names for type checkers alone.
    result = {"return": written["return"]} if "return" in written else {}
    names = getattr(inspect.unwrap(load), "__globals__", {})
    try:
        return get_type_hints(SimpleNamespace(__annotations__=result), names).get("return", Any)
    except NameError as error:
        raise SettingsError(
            "cached", f"{error} when the program runs; import what the function returns"
        ) from error


def refuse_a_second(cache: str, first: object, load: Callable[..., Any]) -> None:
    """Refuse another function than the first: their keys could not be told apart.

    Raises:
        SettingsError: It is another function; the same from a module loaded anew is none.
    """
    if callable(first) and not _are_same(inspect.unwrap(first), load):
        raise SettingsError(
            f"cache {cache}", "it caches another function already; give each its own"
        )


def key_of_calls(load: Callable[..., Any]) -> Callable[..., Key]:
    """Return what turns the arguments of a call into a key: equal calls have one key.

    Raises:
        SettingsError: It takes any keywords.
    """
    parameters = list(inspect.signature(load).parameters.values())[1:]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        raise SettingsError("cached", "a function with **keywords has no key; name its parameters")
    signature = inspect.Signature(parameters)
    # A call by position with every argument given needs no binding.
    plain_count = len(parameters) if all(map(_is_plain, parameters)) else -1

    def key_of_call(*args: Any, **kwargs: Any) -> Key:  # noqa: ANN401 -- whatever it takes
        values: tuple[Any, ...] = args
        if kwargs or len(args) != plain_count:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            values = (*bound.args, *bound.kwargs.values())
        return values[0] if len(values) == 1 else values

    return key_of_call


def _are_same(first: Callable[..., Any], load: Callable[..., Any]) -> bool:
    if first == load:
        return True
    names = [
        (getattr(each, "__module__", None), getattr(each, "__qualname__", None))
        for each in (first, load)
    ]
    # Lambdas and functions within functions share their names with others.
    return names[0] == names[1] and "<" not in str(names[0][1]) and names[0][1] is not None


def _is_plain(parameter: inspect.Parameter) -> bool:
    return parameter.kind in {parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD}
