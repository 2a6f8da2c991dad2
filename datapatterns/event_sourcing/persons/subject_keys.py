"""The keys of persons: made on first use, held while they are used, cached for seconds."""

from collections import OrderedDict
from collections.abc import Collection, Iterable
from functools import cache
from secrets import token_bytes
from threading import Lock
from typing import Any, Final

import msgspec
from sqlalchemy import ARRAY, Connection, Executable, LargeBinary, Text, bindparam, select
from sqlalchemy import column as named

from datapatterns.clock import SYSTEM_CLOCK, Clock
from datapatterns.errors import SubjectKeyError
from datapatterns.event_sourcing.content.encryption import KEY_BYTES, load_aes_gcm
from datapatterns.event_sourcing.persons.key_wrapping import KeyWrapper
from datapatterns.event_sourcing.schema import event_tables
from datapatterns.transactions import refuse_autocommit


class SubjectKeys:
    """Gets at the keys of persons. Make one for each process, and give it to the event store.

    What is read from the database is always asked for: a person who was forgotten is forgotten
    for everybody as soon as that is committed. The cache spares only the way to ``wrapper``.

    Args:
        wrapper: Wraps and unwraps keys.
        cache_seconds: How long an unwrapped key is used; the next use of any key drops it then.
        cache_keys_max: How many may.
        clock: Measures that.

    Raises:
        MissingExtraError: The extra ``encryption`` is not installed.
        ValueError: A bound is negative.
    """

    def __init__(
        self,
        wrapper: KeyWrapper,
        *,
        cache_seconds: float = 60.0,
        cache_keys_max: int = 10_000,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if cache_seconds < 0 or cache_keys_max < 0:
            raise ValueError("the cache's bounds must not be negative; 0 keeps nothing")
        load_aes_gcm()
        self.wrapper = wrapper
        self._cache_seconds = cache_seconds
        self._cache_keys_max = cache_keys_max
        self._clock = clock
        self._lock = Lock()
        self._cached: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()

    def __repr__(self) -> str:
        return f"SubjectKeys({self.wrapper!r}, cache_seconds={self._cache_seconds})"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("keys are not pickled; make SubjectKeys where they are needed")

    def hold(
        self,
        conn: Connection,
        tenant: str,
        subjects: Collection[str],
        *,
        schema: str,
        create: bool,
    ) -> dict[tuple[str, str], bytes | None]:
        """Return the keys of these persons, who cannot be forgotten before the transaction ends.

        It waits for who is forgetting one of them. None stands for a key that is gone; without
        ``create``, who has none is left out.

        Raises:
            IsolationLevelError: The connection commits every statement by itself.
        """
        refuse_autocommit(conn)
        wanted = {"tenant": tenant, "subjects": sorted(subjects), "wrapped": None}
        held = dict(_pairs(conn, schema, wanted))
        missing = [subject for subject in wanted["subjects"] or () if subject not in held]
        if create and missing:
            new = [
                self.wrapper.wrap(token_bytes(KEY_BYTES), bound_to=bound_to(tenant, subject))
                for subject in missing
            ]
            # Somebody else may have made one meanwhile: then it is that which comes back.
            held |= _pairs(conn, schema, wanted | {"subjects": missing, "wrapped": new})
        return {(tenant, s): self._unwrapped(tenant, s, wrapped) for s, wrapped in held.items()}

    def read(
        self, conn: Connection, wanted: Collection[tuple[str, str]], *, schema: str
    ) -> dict[tuple[str, str], bytes | None]:
        """Return the keys of these persons, given with their tenants; None for what is gone.

        Raises:
            SubjectKeyError: There is no trace of one of them.
        """
        ordered = sorted(wanted)
        rows = conn.execute(
            _read_statement(schema),
            {"tenants": [t for t, _ in ordered], "subjects": [s for _, s in ordered]},
        )
        keys = {(t, s): self._unwrapped(t, s, wrapped) for t, s, wrapped in rows}
        for tenant, subject in ordered:
            if (tenant, subject) not in keys:
                raise SubjectKeyError(
                    subject,
                    "is not in the table subject_key, although data is encrypted under it;"
                    " restore the table, or forget them if it is lost",
                )
        return keys

    def _unwrapped(self, tenant: str, subject: str, wrapped: bytes | None) -> bytes | None:
        if wrapped is None:
            return None
        whose = bound_to(tenant, subject)
        now = self._clock.monotonic()
        with self._lock:
            self._drop_expired(now)
            _, key = self._cached.get(whose + wrapped, (now, b""))
        if key:
            return key
        key = self.wrapper.unwrap(wrapped, bound_to=whose)
        if len(key) != KEY_BYTES:
            raise SubjectKeyError(subject, f"is not {KEY_BYTES} bytes long; look at the wrapper")
        with self._lock:
            self._cached[whose + wrapped] = now + self._cache_seconds, key
            self._cached.move_to_end(whose + wrapped)
            while len(self._cached) > self._cache_keys_max:
                self._cached.popitem(last=False)
            self._drop_expired(now)
        return key

    def _drop_expired(self, now: float) -> None:
        # They lie in the order of their ends, so nobody has to ask for each.
        while self._cached and next(iter(self._cached.values()))[0] <= now:
            self._cached.popitem(last=False)


def bound_to(tenant: str, subject: str) -> bytes:
    """Return what says whose a wrapped key is."""
    return msgspec.json.encode(("datapatterns.subject_key", tenant, subject))


def _pairs(
    conn: Connection, schema: str, wanted: dict[str, Any]
) -> Iterable[tuple[str, bytes | None]]:
    return [(row[0], row[1]) for row in conn.execute(_hold_statement(schema), wanted)]


_KEY: Final = (named("subject", Text), named("wrapped_key", LargeBinary))


@cache
def _hold_statement(schema: str) -> Executable:
    function = event_tables(schema).function(
        "hold_subject_keys",
        bindparam("tenant", type_=Text),
        bindparam("subjects", type_=ARRAY(Text)),
        bindparam("wrapped", type_=ARRAY(LargeBinary)),
    )
    return select(*_KEY).select_from(function.table_valued(*_KEY))


@cache
def _read_statement(schema: str) -> Executable:
    found = (named("tenant", Text), *_KEY)
    function = event_tables(schema).function(
        "read_subject_keys",
        bindparam("tenants", type_=ARRAY(Text)),
        bindparam("subjects", type_=ARRAY(Text)),
    )
    return select(*found).select_from(function.table_valued(*found))
