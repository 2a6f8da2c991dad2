"""Which events a decision is about: queries over tags, and conditions made of them."""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from datapatterns.event_sourcing.events import Position, RecordedEvent, check_event_type, check_tags
from datapatterns.event_sourcing.evolution.event_types import EventTypes

ITEMS_MAX: Final = 50
"""The most items of a query; each is a lock while an append with such a condition is open."""

TYPES_MAX: Final = 200
"""The most types that an item names."""


@dataclass(frozen=True, slots=True)
class Tagged:
    """Events that carry all of these tags and are of one of these types.

    Several of them make a query: ``Tagged(("course:c1",)) | Tagged(("student:s7",))``.

    Attributes:
        tags: One at least.
        types: Names as they are stored, or classes of declared events; None for any.

    Raises:
        ValueError: There is no tag or no type, or one that no event can have.
    """

    tags: tuple[str, ...]
    types: tuple[str | type, ...] | None = None

    def __post_init__(self) -> None:
        check_tags(self.tags)
        object.__setattr__(self, "tags", tuple(sorted(set(self.tags))))
        if not self.tags:
            what = "every event" if self.types is None else "events by their types alone"
            raise ValueError(
                f"an item without tags matches {what}, and every append would have to wait for it;"
                " give one tag at least, such as 'students' on all events that are about students"
            )
        if self.types is None:
            return
        _check_types(self.types)
        object.__setattr__(self, "types", tuple(self.types))

    def __or__(self, other: "Tagged | TagQuery") -> "TagQuery":
        """Return the query for events that match either."""
        return tag_query(self) | other

    def type_names(self, types: EventTypes) -> list[str] | None:
        """Return the names of the types, None for any; of a class all that it is stored under.

        Raises:
            EventTypeError: A class is not declared.
        """
        if self.types is None:
            return None
        names: set[str] = set()
        for type_ in self.types:
            # What is stored under an old name says the same: a decision must not miss it.
            names |= {type_} if isinstance(type_, str) else types.stored_names(type_)
        return sorted(names)


@dataclass(frozen=True, slots=True)
class TagQuery:
    """Events that match one of some items, at least.

    Raises:
        ValueError: There are no items, or too many.
    """

    items: tuple[Tagged, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "items", tuple(dict.fromkeys(self.items)))
        if not self.items:
            raise ValueError("a query without items matches nothing; give at least one Tagged")
        if len(self.items) > ITEMS_MAX:
            raise ValueError(f"{len(self.items)} items are too many, {ITEMS_MAX} is most")

    def __or__(self, other: "Tagged | TagQuery") -> "TagQuery":
        """Return the query for events that match either."""
        return TagQuery(self.items + tag_query(other).items)


@dataclass(frozen=True, slots=True)
class Condition:
    """What must not have happened for an append to take place.

    Attributes:
        query: What the decision was based on.
        after: Up to where it knew the log; a high-water mark, as `EventStore.read_tagged` returns.
        tenant: Whose events.
    """

    query: TagQuery
    after: Position
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class TaggedPage:
    """Some events that match a query, in the order of the log.

    Attributes:
        events: In rising position.
        checkpoint: Where to go on, for more or later.
        caught_up: Nothing further matches that is final.
        condition: For the append: nothing matches behind this page. None if the page was read
            under a lock, which makes that sure by itself.
    """

    events: list[RecordedEvent]
    checkpoint: Position
    caught_up: bool
    condition: Condition | None

    def __iter__(self) -> Iterator[RecordedEvent]:
        return iter(self.events)


def tag_query(query: Tagged | TagQuery) -> TagQuery:
    """Return ``query``, an item as a query of one."""
    return TagQuery((query,)) if isinstance(query, Tagged) else query


def condition_json(query: TagQuery, types: EventTypes) -> str:
    """Return the query as the database takes it.

    Raises:
        EventTypeError: A class is not declared.
    """
    return json.dumps([_item(item, types) for item in query.items])


def locked_tags(query: TagQuery) -> list[str]:
    """Return one tag of each item: a matching event carries all of them, so one is enough.

    It must be the one that the database would choose: the first.
    """
    return [item.tags[0] for item in query.items]


def _item(item: Tagged, types: EventTypes) -> Mapping[str, Any]:
    names = item.type_names(types)
    tags: dict[str, Any] = {"tags": list(item.tags)}
    return tags if names is None else tags | {"types": names}


def _check_types(types: Collection[str | type]) -> None:
    if isinstance(types, str):
        raise ValueError(f"{types!r} is one type; give a tuple of them")  # noqa: TRY004 -- as tags
    if not types or len(types) > TYPES_MAX:
        raise ValueError(f"an item names 1 to {TYPES_MAX} types; leave them out for any")
    for type_ in types:
        if isinstance(type_, str):
            check_event_type(type_, 1)
        elif not isinstance(type_, type):
            raise ValueError(f"{type_!r} is neither the name nor the class of an event")  # noqa: TRY004 -- as tags
