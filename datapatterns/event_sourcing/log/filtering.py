"""Which events of the log somebody wants."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

from datapatterns.event_sourcing.events import check_tags


class FilterShape(NamedTuple):
    """Which conditions a filter has, without their values: one statement serves all of a shape."""

    event_types: bool
    categories: bool
    tags: bool
    tenant: bool
    since: bool
    until: bool

    @property
    def by_tag(self) -> bool:
        """Whether the index of tags leads to the events; it is an index of one tenant's."""
        return self.tags and self.tenant


@dataclass(frozen=True, slots=True)
class LogFilter:
    """Which events of the log to read: those that meet all conditions that are given.

    >>> LogFilter(event_types=["item.scanned"], tenant="shop 7").event_types
    ('item.scanned',)

    Attributes:
        event_types: One of these; none for an empty collection.
        categories: Of a stream of one of these categories.
        tags: All of these. Together with ``tenant`` an index leads to them; then give the rarest
            first.
        tenant: Of a stream of this tenant; an empty text is the tenant without a name.
        since: Recorded then or later.
        until: Recorded earlier.

    Raises:
        ValueError: A condition is a single text instead of a collection, no stored text or tag can
            be like that, or a time has no time zone.
    """

    event_types: Collection[str] | None = None
    categories: Collection[str] | None = None
    tags: Collection[str] = ()
    tenant: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def __post_init__(self) -> None:
        for name in ("event_types", "categories"):
            texts = getattr(self, name)
            if isinstance(texts, str):
                raise ValueError(f"{texts!r} is one text; give a list of {name}")  # noqa: TRY004 -- as for tags
            if texts is not None:
                # Sorted and once each, so that equal filters are equal.
                object.__setattr__(self, name, tuple(sorted(set(texts))))
        for text in (*(self.event_types or ()), *(self.categories or ()), self.tenant or ""):
            _refuse_unstorable(text)
        check_tags(self.tags)
        object.__setattr__(self, "tags", tuple(dict.fromkeys(self.tags)))
        for name in ("since", "until"):
            moment = getattr(self, name)
            if moment is not None and moment.utcoffset() is None:
                raise ValueError(f"{name}, {moment}, has no time zone; give one")

    @property
    def shape(self) -> FilterShape:
        """Which conditions it has."""
        return FilterShape(
            event_types=self.event_types is not None,
            categories=self.categories is not None,
            tags=bool(self.tags),
            tenant=self.tenant is not None,
            since=self.since is not None,
            until=self.until is not None,
        )

    @property
    def parameters(self) -> dict[str, Any]:
        """The values of its conditions, by their names."""
        given: dict[str, Any] = {
            "event_types": self.event_types if self.event_types is None else [*self.event_types],
            "categories": self.categories if self.categories is None else [*self.categories],
            "tags": [*self.tags],
            "tag": next(iter(self.tags), None),
            "tenant": self.tenant,
            "since": self.since,
            "until": self.until,
        }
        return given


def _refuse_unstorable(text: str) -> None:
    # The driver would refuse it, too, but in the middle of a transaction.
    if "\0" in text or (not text.isascii() and text != text.encode(errors="ignore").decode()):
        raise ValueError(f"{text!r} is no text that PostgreSQL stores")


EVERYTHING: Final = LogFilter()
"""No condition at all."""


def log_filter(matching: LogFilter | None, event_types: Collection[str] | None) -> LogFilter:
    """Return a filter that was given, or one that was given in short.

    Raises:
        ValueError: Both were given.
    """
    if event_types is None:
        return matching or EVERYTHING
    if matching is not None:
        raise ValueError("event types are given beside a filter; put them into it")
    return LogFilter(event_types=event_types)
