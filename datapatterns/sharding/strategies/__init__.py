"""Which bucket holds a key: pure values, which compute the same here and in SQL."""

from datapatterns.sharding.strategies.composite import Composite, CompositeKey
from datapatterns.sharding.strategies.directory import Directory
from datapatterns.sharding.strategies.hash_buckets import Hash
from datapatterns.sharding.strategies.listed import ListMap
from datapatterns.sharding.strategies.modulo import Modulo
from datapatterns.sharding.strategies.nodes import Jump, Ketama, Rendezvous
from datapatterns.sharding.strategies.ranges import Range
from datapatterns.sharding.strategies.strategy import (
    Key,
    KeyOperator,
    KeyPart,
    ShardingStrategy,
)

__all__ = [
    "Composite",
    "CompositeKey",
    "Directory",
    "Hash",
    "Jump",
    "Ketama",
    "Key",
    "KeyOperator",
    "KeyPart",
    "ListMap",
    "Modulo",
    "Range",
    "Rendezvous",
    "ShardingStrategy",
]
