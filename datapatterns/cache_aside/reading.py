"""One call's wish: which entries, what decodes them, and what loads those that are missing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from uuid import uuid4

from datapatterns.cache_aside.codec import Codec
from datapatterns.cache_aside.flow import read_in_snapshot, read_through
from datapatterns.cache_aside.keys import Key
from datapatterns.cache_aside.policy import CachePolicy
from datapatterns.cache_aside.steps import Flow, Load, Outcome, Wanted
from datapatterns.errors import SettingsError

T = TypeVar("T")
L = TypeVar("L", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Reading(Generic[T, L]):
    """What is read.

    Attributes:
        wanted: The entries, each once.
        codec: What makes values of bytes.
        policy: The times that these values live by.
        load: Called with a connection and the places among ``wanted`` to load; returns their
            values in this order, or an awaitable of them.
        anew: Whether what is there is replaced, however fresh it is.
    """

    wanted: Sequence[Wanted]
    codec: Codec[T]
    policy: CachePolicy
    load: L
    anew: bool = False

    @property
    def kind(self) -> object:
        """Whose outcomes this call can take, whatever times they live by."""
        return (self.codec, self.anew)

    def flow(self, *, with_writers: bool) -> Flow[list[Outcome[T]]]:
        """Return the way through the protocol."""
        return read_through(
            self.wanted,
            codec=self.codec,
            policy=self.policy,
            token=uuid4().hex,
            anew=self.anew,
            with_writers=with_writers,
        )

    def flow_in_snapshot(self, *, may_hit: bool) -> Flow[list[Outcome[T]]]:
        """Return the way for a transaction that sees one moment."""
        [wanted] = self.wanted
        return read_in_snapshot(
            wanted, codec=self.codec, policy=self.policy, token=uuid4().hex, may_hit=may_hit
        )

    def unleased(self) -> Load:
        """Return the step that loads everything without storing it."""
        count = len(self.wanted)
        return Load(tuple(range(count)), (None,) * count, leased=False)


def values_of(keys: Sequence[Key], found: object) -> list[Any]:
    """Return what a loader of several found for ``keys``; None for those it does not name.

    Raises:
        SettingsError: It did not return a mapping, or names keys that were not asked for.
    """
    if not isinstance(found, Mapping):
        raise SettingsError(
            "loader of several", f"it returned a {type(found).__name__}; return a dict by key"
        )
    # Else a wrong type of key would pass for the absence of every row.
    if not found.keys() <= set(keys):
        odd = next(iter(found.keys() - set(keys)))
        raise SettingsError(
            "loader of several",
            f"it returned a key of type {type(odd).__name__} that was not asked for; return the"
            " keys as they were given",
        )
    return [found.get(key) for key in keys]
