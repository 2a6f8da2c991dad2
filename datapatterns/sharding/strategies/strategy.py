"""What a sharding strategy promises."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Protocol, TypeAlias
from uuid import UUID

from sqlalchemy import ColumnElement

from datapatterns.sql.metadata import DEFAULT_SCHEMA

KeyPart: TypeAlias = int | str | UUID
"""What PostgreSQL calls ``bigint``, ``text`` or ``uuid``."""

Key: TypeAlias = KeyPart | tuple[KeyPart, KeyPart]
"""A shard key; if it is two columns, the values of both."""

KeyOperator: TypeAlias = Literal["=", "in", "between", "<", "<=", ">", ">="]
"""How a statement may compare the shard key; ``between`` two keys, both of them included.

Text is compared as under ``COLLATE "C"``: by code points.
"""


class ShardingStrategy(Protocol):
    """Places each key in exactly one bucket, without I/O.

    The same key gives the same bucket in every process, and in SQL. Which shard holds a bucket
    is the shard map's business, so that moving data never changes a strategy.
    """

    kind: ClassVar[str]
    """What the stored map calls it."""

    @property
    def key_type(self) -> type[KeyPart] | None:
        """Return the type of the keys that it places; None if any, or if they have two parts."""
        ...

    @property
    def buckets(self) -> int:
        """Return how many buckets have a number; they are numbered from 0."""
        ...

    def bucket(self, key: Key) -> int:
        """Return the bucket that holds ``key``.

        Raises:
            UnroutableKeyError: No bucket holds such a key.
        """
        ...

    def buckets_for(
        self, operator: KeyOperator, value: Key | Sequence[Key]
    ) -> frozenset[int] | None:
        """Return the buckets that can hold a key that satisfies the comparison.

        None if that may be all of them.

        Raises:
            TypeError: The operator does not go with the value.
            UnroutableKeyError: No bucket holds a key that is named.
        """
        ...

    def bucket_of(
        self,
        column: Any,  # noqa: ANN401 -- a column, or two for keys of two parts
        *,
        schema: str = DEFAULT_SCHEMA,
    ) -> ColumnElement[int]:
        """Return the SQL expression for the bucket of a row with this shard key."""
        ...

    def predicate(
        self,
        column: Any,  # noqa: ANN401 -- as above
        bucket: int,
        *,
        schema: str = DEFAULT_SCHEMA,
    ) -> ColumnElement[bool]:
        """Return the SQL condition that a row with this shard key lies in ``bucket``."""
        ...
