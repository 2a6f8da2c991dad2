"""The values that go into and come out of the event store."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from functools import lru_cache
from typing import Any, Final, NewType
from uuid import UUID

from datapatterns.event_sourcing.event_ids import new_id
from datapatterns.event_sourcing.recorded import LogPage, RecordedEvent

__all__ = ["LogPage", "RecordedEvent"]
"""What is defined elsewhere, and belongs to these values, too."""

Position = NewType("Position", int)
"""A place in the log that holds the events of all streams."""

START = Position(0)
"""The place before the first event."""

NEW_STREAM: Final = 0
"""Expected version of a stream that has no events yet."""


class Expected(Enum):
    """What an append may expect of its stream when it does not name a version.

    Without a version a retry is recognised by ``event_ids``, if they are given; otherwise it
    appends once more.
    """

    ANY = "any"
    EXISTS = "exists"


ANY: Final = Expected.ANY
"""Append whether or not the stream exists."""

EXISTS: Final = Expected.EXISTS
"""Append to a stream that has events, whatever its version."""

VERSION_MAX: Final = 2**62
"""More than any stream can reach, and less than what arithmetic on the server can bear."""

LIMIT_MAX: Final = 2**31 - 1
"""The most rows that a page is asked for."""

KEY_BYTES_MAX: Final = 500
"""The longest key and tenant; all three parts share one index entry."""

TAGS_MAX: Final = 20
"""The most tags of one event; each is a lock while its writer's transaction is open."""

_CATEGORY = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,99}")
_EVENT_TYPE = re.compile(r"[A-Za-z_][A-Za-z0-9_.:-]{0,199}")


@dataclass(frozen=True, slots=True, order=True)
class StreamId:
    """Names one stream.

    It is ordered: transactions that append to several streams do so in this order, or they may
    deadlock.

    >>> str(StreamId("basket", "31198570044"))
    'basket-31198570044'

    Raises:
        ValueError: A part is empty, too long or holds what cannot be stored.
    """

    category: str
    key: str
    tenant: str = ""

    def __post_init__(self) -> None:
        if not _CATEGORY.fullmatch(self.category):
            raise ValueError(
                f"{self.category!r} cannot name a category; use 1 to 100 of A-Z, a-z, 0-9, _"
                " and ., not beginning with a digit or a dot"
            )
        if not self.key:
            raise ValueError("the key of a stream is empty")
        for part in (self.key, self.tenant):
            _check_part(part)

    def __str__(self) -> str:
        stream = f"{self.category}-{self.key}"
        return f"{self.tenant}/{stream}" if self.tenant else stream


@dataclass(frozen=True, slots=True)
class NewEvent:
    """Something that is about to have happened.

    Attributes:
        data: What JSON can hold; dates, UUIDs and decimals become text.
        schema_version: Which shape ``data`` has, from 1.
        event_id: Makes a retry recognisable; keep it when you try again.
        metadata: Who, why, in answer to what; never part of the state.
        tags: What it is about, such as ``course:c1``, for conditions and reads over streams.

    Raises:
        ValueError: The type's name, the schema version or a tag cannot be stored.
    """

    event_type: str
    data: Mapping[str, Any]
    schema_version: int = 1
    event_id: UUID = field(default_factory=new_id)
    metadata: Mapping[str, Any] | None = None
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_event_type(self.event_type, self.schema_version)
        if self.tags:
            check_tags(self.tags)


@dataclass(frozen=True, slots=True)
class Appended:
    """What an append did.

    Attributes:
        version: The stream's version after these events.
        position: The last of them; read models that have reached it show this write.
        repeated: They were stored by an earlier attempt; nothing was written now.
    """

    version: int
    position: Position
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Blocker:
    """A transaction that has appended and is still open, so that readers wait before it.

    Attributes:
        pid: Its session; None for a prepared transaction.
        state: As in ``pg_stat_activity``, or ``prepared``; ``unknown`` if this role may not see it.
        since: When the transaction began, or was prepared; None if this role may not see it.
        query: Its latest statement; None for a prepared transaction.
        prepared_as: The name to commit or roll it back by; None for a session.
        positions: How many positions it holds back, those of rolled-back events among them.
        application: What the session calls itself.
        client: The address that it came from; None for a local one.
    """

    pid: int | None
    state: str
    since: datetime | None
    query: str | None
    prepared_as: str | None = None
    positions: int = 0
    application: str | None = None
    client: str | None = None


@lru_cache(maxsize=1_000)
def check_event_type(name: str, schema_version: int) -> None:
    """Refuse what cannot name a type of event.

    Raises:
        ValueError: The name or the schema version is out of bounds.
    """
    if not _EVENT_TYPE.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot name a type of event; use 1 to 200 of A-Z, a-z, 0-9, _, ., : and -,"
            " beginning with a letter or _"
        )
    if not 1 <= schema_version < 2**31:
        raise ValueError(f"schema version {schema_version} is out of bounds; count from 1")


def check_tags(tags: Collection[str]) -> None:
    """Refuse what cannot be a tag.

    Raises:
        ValueError: A tag is empty, too long, or holds control characters.
    """
    if isinstance(tags, str):
        raise ValueError(f"{tags!r} is one tag; give a tuple of them")  # noqa: TRY004 -- as below
    if len(tags) > TAGS_MAX:
        raise ValueError(f"{len(tags)} tags are too many for one event, {TAGS_MAX} is most")
    for tag in tags:
        if not tag or not tag.isprintable():
            raise ValueError(f"{tag!r} cannot be a tag; use printable text, such as course:c1")
        _check_part(tag)


def _check_part(part: str) -> None:
    try:
        size = len(part.encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"{part!r} holds half a surrogate pair, which is no text") from error
    if "\0" in part:
        raise ValueError(f"{part!r} holds U+0000, which PostgreSQL cannot store")
    if size > KEY_BYTES_MAX:
        raise ValueError(f"a key or tenant of {size} bytes is too long; {KEY_BYTES_MAX} is most")
