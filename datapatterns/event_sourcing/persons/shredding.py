"""Forget a person: take their key away, and with it everything that was encrypted under it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

from sqlalchemy import BigInteger, Boolean, Connection, Executable, Text, bindparam, select, tuple_
from sqlalchemy import column as named

from datapatterns.errors import SubjectKeyError
from datapatterns.event_sourcing.events import ANY, Position, StreamId
from datapatterns.event_sourcing.persons.key_wrapping import Subject
from datapatterns.event_sourcing.persons.personal import FORGOTTEN_CATEGORY, SubjectForgotten
from datapatterns.event_sourcing.persons.subject_keys import SubjectKeys, bound_to
from datapatterns.event_sourcing.schema import event_tables
from datapatterns.event_sourcing.store import EventStore


class Purge(Protocol):
    """Deletes what a read model, or another table, holds of a person; again does no harm."""

    def __call__(self, conn: Connection, subject: str, /, *, tenant: str) -> None:
        """Delete it, in the transaction of ``conn``."""
        ...


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What forgetting did.

    Attributes:
        position: Of the event ``subject.forgotten``: read models that have reached it know. None
            if the person had been forgotten before.
        snapshots: How many were deleted.
        had_key: Whether there was a key to take away. If not, nothing personal was ever stored
            under that name, or the person had been forgotten before.
    """

    position: Position | None
    snapshots: int
    had_key: bool


@dataclass(frozen=True, slots=True)
class Subjects:
    """The persons whom personal fields are about.

    Attributes:
        store: Whose events they are.
        purges: Called in order, each time, in the transaction that forgets.
    """

    store: EventStore
    purges: Sequence[Purge] = field(default=())

    def forget(
        self,
        conn: Connection,
        subject: Subject,
        *,
        tenant: str = "",
        metadata: Mapping[str, Any] | None = None,
    ) -> Forgotten:
        """Make all personal data of ``subject`` unreadable, for ever.

        It waits for open appends and snapshots that use the key; later ones are refused. All of
        it is the caller's transaction: nothing is forgotten until that is committed, and if it
        breaks off, nothing was. Forgetting again deletes and purges again, and appends nothing.

        Args:
            conn: A connection in a transaction. The caller commits.
            subject: As the fields name the person: the id of a customer, say.
            tenant: Whose log it is about.
            metadata: Of the event: who asked for it, and why.

        Raises:
            ValueError: That names nobody.
        """
        stream = StreamId(FORGOTTEN_CATEGORY, str(subject), tenant)
        shredded_now, had_key, snapshots = conn.execute(
            _shred_statement(self.store.schema), {"tenant": tenant, "subject": stream.key}
        ).one()
        for purge in self.purges:
            purge(conn, stream.key, tenant=tenant)
        if not shredded_now:
            return Forgotten(None, snapshots, had_key)
        # Last: readers of the log wait from here on until the transaction ends.
        appended = self.store.append(
            conn, stream, [SubjectForgotten(stream.key)], expected_version=ANY, metadata=metadata
        )
        return Forgotten(appended.position, snapshots, had_key)

    def rewrap(
        self, conn: Connection, after: tuple[str, str] | None = None, *, limit: int = 500
    ) -> tuple[str, str] | None:
        """Wrap at most ``limit`` keys anew, say under a new master key; return where to go on.

        None means that all are done; then nothing needs the old master key any more, but the
        database's backups. Appends go on meanwhile. It takes the owner's rights.

        Args:
            conn: A connection in a transaction. The caller commits.
            after: What the last call returned.
            limit: How many.

        Raises:
            SubjectKeyError: The store has no keys, or a key that was wrapped anew would be lost;
                nothing was changed.
            ValueError: ``limit`` is not positive.
        """
        if limit < 1:
            raise ValueError(f"a page of {limit} keys cannot move on; ask for at least 1")
        wrapper = _keys_of(self.store).wrapper
        keys = event_tables(self.store.schema).subject_keys
        page = (
            select(keys.c.tenant, keys.c.subject, keys.c.wrapped_key)
            .where(keys.c.wrapped_key.is_not(None))
            .order_by(keys.c.tenant, keys.c.subject)
            .limit(limit)
            .with_for_update(key_share=True)  # against forgetting, not against appending
        )
        if after is not None:
            page = page.where(tuple_(keys.c.tenant, keys.c.subject) > tuple_(*after))
        rows = conn.execute(page).all()
        changes = []
        for tenant, subject, wrapped in rows:
            whose = bound_to(tenant, subject)
            data_key = wrapper.unwrap(wrapped, bound_to=whose)
            new = wrapper.wrap(data_key, bound_to=whose)
            # With the old one all that it encrypts would be lost. It costs one question more.
            if wrapper.unwrap(new, bound_to=whose) != data_key:
                raise SubjectKeyError(
                    subject, "comes back as another once it is wrapped anew; repair the wrapper"
                )
            changes.append({"in_tenant": tenant, "who": subject, "new": new})
        if changes:
            conn.execute(
                keys.update()
                .where(keys.c.tenant == bindparam("in_tenant"), keys.c.subject == bindparam("who"))
                .values(wrapped_key=bindparam("new")),
                changes,
            )
        return (rows[-1].tenant, rows[-1].subject) if len(rows) == limit else None


def _keys_of(store: EventStore) -> SubjectKeys:
    if store.keys is None:
        raise SubjectKeyError(None, "this store has no keys; give EventStore(keys=...) some")
    return store.keys


@cache
def _shred_statement(schema: str) -> Executable:
    answer = (
        named("shredded_now", Boolean),
        named("had_key", Boolean),
        named("snapshots", BigInteger),
    )
    function = event_tables(schema).function(
        "shred_subject", bindparam("tenant", type_=Text), bindparam("subject", type_=Text)
    )
    return select(*answer).select_from(function.table_valued(*answer))
