"""A Citus coordinator as one of the shards of a cluster."""

from dataclasses import dataclass

from sqlalchemy import URL


@dataclass(frozen=True, slots=True)
class CitusShard:
    """A shard that is many servers behind a coordinator of Citus.

    Buckets move to it from other shards while they are written, and never leave it again: its
    tables have no triggers that would note what changes. What the library keeps of a shard stays on
    the coordinator, and is asked there by statements of their own, as Citus sends the conditions of
    a query on to its nodes.

    Attributes:
        coordinator: Where statements go.
    """

    coordinator: str | URL
