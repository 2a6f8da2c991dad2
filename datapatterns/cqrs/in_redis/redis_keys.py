"""Under which keys a read model lies in Redis."""

from dataclasses import dataclass
from typing import Final, NamedTuple

KINDS: Final = ("hash", "json", "zset")
"""What structures there are; JSON documents of one name are fields of one hash."""

_PARTS: Final = 2  # of a key, after what all keys begin with: kind and name


class Structure(NamedTuple):
    """One key of a read model; a tuple, for it is hashed per change.

    Attributes:
        kind: One of `KINDS`.
        name: Without the prefix of its key.
    """

    kind: str
    name: str


class Place(NamedTuple):
    """One field of a hash, one document, or one member of a sorted set.

    Attributes:
        kind: The structure's.
        name: The structure's.
        field: The field, the document's key, or the member.
    """

    kind: str
    name: str
    field: str

    @property
    def structure(self) -> Structure:
        """Where it lies."""
        return Structure(self.kind, self.name)


@dataclass(frozen=True, slots=True)
class RedisKeys:
    """The keys of one version of a read model, all in one hash slot of a cluster.

    >>> keys = RedisKeys("shop", "dashboard", 2)
    >>> keys.of("hash", "cents_by_department")
    '{shop:dashboard:v2}:hash:cents_by_department'
    """

    prefix: str
    name: str
    version: int

    @property
    def tag(self) -> str:
        """What all keys begin with."""
        return f"{{{self.prefix}:{self.name}:v{self.version}}}"

    @property
    def checkpoint(self) -> str:
        """The key of the checkpoint."""
        return f"{self.tag}:checkpoint"

    @property
    def sizes(self) -> str:
        """The key of the hash that says how many places each structure has."""
        return f"{self.tag}:sizes"

    def of(self, kind: str, name: str) -> str:
        """Return the key of one structure; its kind is part of it, so kinds cannot clash."""
        return f"{self.tag}:{kind}:{name}"

    def structure(self, key: str) -> Structure | None:
        """Return whose key it is; None if it is no structure's."""
        parts = key.removeprefix(f"{self.tag}:").split(":", 1)
        return Structure(*parts) if len(parts) == _PARTS else None

    @property
    def pattern(self) -> str:
        """What all keys match, for SCAN."""
        escaped = "".join(f"\\{c}" if c in "*?[]^-\\" else c for c in self.tag)
        return f"{escaped}:*"


def size_field(structure: Structure, /) -> str:
    """Return under which field of the sizes a structure's is."""
    return f"{structure.kind}:{structure.name}"


def structure_of(size_field: str) -> Structure:
    """Return whose size it is."""
    kind, _, name = size_field.partition(":")
    return Structure(kind, name)
