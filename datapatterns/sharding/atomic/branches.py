"""What a prepared branch is called: its name says all that recovery needs to know."""

import re
from dataclasses import dataclass
from typing import Self
from uuid import UUID

from datapatterns.change_log.snapshots import Xid

_NAME = re.compile(
    r"datapatterns/(?P<schema>[a-z_][a-z0-9_]{0,39})/(?P<id>[0-9a-f]{32})"
    r"/(?P<primary>[a-z0-9_]{1,30})/(?P<xid>[0-9]{1,20})/(?P<shard>[a-z0-9_]{1,30})"
)


@dataclass(frozen=True, slots=True)
class Branch:
    """The part of a transaction that one shard has prepared.

    Attributes:
        transaction: The transaction's id.
        primary: The shard whose COMMIT decides.
        xid: The transaction of the primary.
        shard: Where the branch is prepared.
        schema: Of the library's tables: two of them in one database know nothing of each other.
    """

    transaction: UUID
    primary: str
    xid: Xid
    shard: str
    schema: str

    @property
    def name(self) -> str:
        """Return the name of the prepared transaction; nothing in it needs quoting."""
        return (
            f"datapatterns/{self.schema}/{self.transaction.hex}/{self.primary}/{self.xid}"
            f"/{self.shard}"
        )

    @classmethod
    def named(cls, name: str) -> Self | None:
        """Return the branch that is called ``name``; None if it is another's transaction."""
        found = _NAME.fullmatch(name)
        if found is None:
            return None
        return cls(
            UUID(found["id"]),
            found["primary"],
            Xid(int(found["xid"])),
            found["shard"],
            found["schema"],
        )
