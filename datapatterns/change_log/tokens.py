"""A writer's token: read your own writes from what is derived from them."""

import re
from dataclasses import dataclass
from typing import Self

from sqlalchemy import Connection, func, select

from datapatterns.change_log.consuming import read_consumer, require_own_consumer
from datapatterns.change_log.identity import system_identifier
from datapatterns.change_log.schema import Xid8
from datapatterns.change_log.snapshots import Xid
from datapatterns.errors import ConsumerMissingError


@dataclass(frozen=True, slots=True)
class ChangeToken:
    """Names a writer's transaction; whoever has consumed it has consumed all its changes.

    Attributes:
        system_identifier: The cluster in which ``xid`` means something.
        xid: The writer's transaction.
    """

    system_identifier: int
    xid: Xid

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the token that was written as ``str(token)``, in a cookie perhaps.

        >>> ChangeToken.parse("7413:905")
        ChangeToken(system_identifier=7413, xid=905)

        Raises:
            ValueError: ``text`` is not a token.
        """
        if not (parts := re.fullmatch(r"(\d{1,20}):(\d{1,20})", text, re.ASCII)):
            raise ValueError("not a change token")
        return cls(int(parts[1]), Xid(int(parts[2])))

    def __str__(self) -> str:
        """Return the token as text of at most 41 characters."""
        return f"{self.system_identifier}:{self.xid}"


def change_token(conn: Connection) -> ChangeToken:
    """Return the token of the caller's transaction, which is a writing one from now on."""
    own = func.pg_current_xact_id(type_=Xid8)
    found, xid = conn.execute(select(system_identifier, own)).one()
    return ChangeToken(found, xid)


def has_consumed(conn: Connection, name: str, token: ChangeToken, *, schema: str) -> bool:
    """Return whether consumer ``name`` has consumed what ``token`` stands for.

    True for a transaction that was rolled back as well: nothing of it is to come.

    Raises:
        ConsumerMissingError: Nobody has registered this name.
        ForeignSnapshotError: The consumer was last advanced in another database.
        ValueError: The token comes from another cluster.
    """
    if conn.scalar(select(system_identifier)) != token.system_identifier:
        raise ValueError("the token comes from another cluster")
    consumer = read_consumer(conn, name, schema=schema)
    if consumer is None:
        raise ConsumerMissingError(name)
    require_own_consumer(conn, name, schema=schema)
    return consumer.populated and consumer.snapshot.shows(token.xid)
