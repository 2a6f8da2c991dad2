"""Whether tables and triggers are as they were: changes of rows that no trigger notes.

Whoever disables a trigger, rewrites a table or adds an heir to it changes rows, or who is noted,
and nothing tells of that. So what the catalogue says before both shards are compared has to be what
it says in the cut, with the same numbers and transactions, so that what was undone shows as well.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from psycopg import sql
from sqlalchemy import ARRAY, bindparam, text
from sqlalchemy.dialects.postgresql import OID

from datapatterns.errors import MoveRefusedError
from datapatterns.sharding.moving.both_sides import on_both
from datapatterns.sharding.moving.copying import TablePair
from datapatterns.sharding.moving.holding import Side
from datapatterns.sharding.moving.moved_table import MovedTable
from datapatterns.sql.composing import execute
from datapatterns.transactions import looking

OURS = "^zz_datapatterns_[0-9]+_[0-9]+_(insert|update|delete|truncate)$"
"""What triggers of moves are called."""

# From it on, nobody changes a column, a trigger or a rule, and whoever has done so has ended.
# Writers need the same lock, so none of them waits.
_KEEP = sql.SQL("LOCK TABLE {tables} IN ROW EXCLUSIVE MODE")
_FACTS = text("""
WITH facts (fact) AS (
    SELECT concat_ws(' ', 'table', c.oid, c.relnamespace, c.relname, pg_relation_filenode(c.oid),
        c.relkind, c.relpersistence, c.relhassubclass, c.relrowsecurity, c.relforcerowsecurity)
    FROM pg_catalog.pg_class c WHERE c.oid = ANY (:tables)
    UNION ALL
    SELECT concat_ws(' ', 'column', a.attrelid, a.attnum, a.attname, a.atttypid, a.atttypmod,
        a.attcollation, a.attgenerated, a.attidentity)
    FROM pg_catalog.pg_attribute a WHERE a.attrelid = ANY (:tables) AND a.attnum > 0
    UNION ALL
    SELECT concat_ws(' ', 'key', i.indexrelid, i.indkey, i.indnkeyatts)
    FROM pg_catalog.pg_index i WHERE i.indrelid = ANY (:tables) AND i.indisprimary
    UNION ALL
    SELECT concat_ws(' ', 'heir', h.inhrelid, h.inhparent, h.xmin)
    FROM pg_catalog.pg_inherits h WHERE :tables && ARRAY[h.inhrelid, h.inhparent]
    UNION ALL
    SELECT concat_ws(' ', 'foreign key', o.oid) FROM pg_catalog.pg_constraint o
    WHERE o.contype = 'f' AND :tables && ARRAY[o.conrelid, o.confrelid]
    UNION ALL
    SELECT concat_ws(' ', 'rule', w.oid, w.xmin, w.ev_enabled)
    FROM pg_catalog.pg_rewrite w WHERE w.ev_class = ANY (:tables)
    UNION ALL
    SELECT concat_ws(' ', 'trigger', t.oid, t.xmin, t.tgenabled) FROM pg_catalog.pg_trigger t
    WHERE t.tgrelid = ANY (:tables) AND NOT (t.tgname ~ :ours AND NOT t.tgisinternal)
), guards (fact, is_on) AS (
    SELECT concat_ws(' ', t.oid, t.xmin), t.tgenabled = 'A' AND p.proname = CASE
        WHEN t.tgname LIKE '%\\_truncate' THEN 'reject_truncate' ELSE 'capture_change' END
    FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
    WHERE t.tgrelid = ANY (:tables) AND NOT t.tgisinternal
        AND t.tgname ~ :ours AND starts_with(t.tgname, :prefix)
)
SELECT (SELECT md5(string_agg(fact, ',' ORDER BY fact)) FROM facts),
    (SELECT string_agg(fact, ',' ORDER BY fact) FROM guards WHERE is_on),
    (SELECT count(*) FROM guards WHERE is_on)
""")
_KINDS = 4
_TRIES = 5


@dataclass(frozen=True, slots=True)
class Seen:
    """What a catalogue said of the tables of a move.

    Attributes:
        tables: A digest of what they are, and of who else acts when they are changed.
        guards: The move's own triggers, as far as they fire for everybody.
        is_guarded: Whether these are all.
    """

    tables: str
    guards: str | None
    is_guarded: bool


class TouchedError(Exception):
    """Tables or triggers are not what they were when both shards were compared."""


@dataclass(slots=True)
class Watch:
    """Looks at tables and triggers, so that nothing is lost that they do not tell.

    Attributes:
        source: The shard that has the bucket.
        target: The shard that gets it.
        tables: The tables of the group.
        is_guarding_target: Whether triggers keep others from what is arriving.
        check: Raises if the tables cannot be moved as they are now.
        guard: Makes the triggers.
    """

    source: Side
    target: Side
    tables: Sequence[TablePair]
    is_guarding_target: bool
    check: Callable[[], None]
    guard: Callable[[], None]
    _checked: tuple[str, str] | None = field(init=False, default=None)
    _seen: tuple[Seen, Seen] | None = field(init=False, default=None)

    def begin(self) -> None:
        """Check the tables; what changes from now on is noticed.

        Raises:
            MoveRefusedError: The tables cannot be moved as they are.
        """
        here, there = self._look()
        self.check()
        self._checked = (here.tables, there.tables)

    def settle(self) -> None:
        """Make sure that the tables can be moved, and that triggers note what changes, from now on.

        In no transaction, and before what relies on it.

        Raises:
            MoveRefusedError: The tables cannot be moved as they are, or change all the time.
        """
        for _ in range(_TRIES):
            here, there = self._look()
            if self._checked != (here.tables, there.tables):
                self.begin()
            elif self._is_guarded(here, there):
                self._seen = (here, there)
                return
            else:
                self.guard()
        raise MoveRefusedError(
            f"the tables of the group on {self.source.shard} and {self.target.shard}",
            "they are changed all the time; move the bucket when that has ended",
        )

    def hold(self, *sides: Side) -> None:
        """Let nobody change tables and triggers until the caller's transactions end."""
        for side in sides:
            number = 0 if side is self.source else 1
            places = sql.SQL(", ").join(pair[number].place for pair in self.tables)
            execute(side.conn, _KEEP.format(tables=places)).close()

    def look_again(self) -> None:
        """Make sure that tables and triggers are what they were, in transactions of the caller's.

        Raises:
            TouchedError: They are not what they were.
        """
        if (self._seen_on(0), self._seen_on(1)) != self._seen:
            raise TouchedError

    def _is_guarded(self, here: Seen, there: Seen) -> bool:
        return here.is_guarded and (there.is_guarded or not self.is_guarding_target)

    def _look(self) -> tuple[Seen, Seen]:
        def look(number: int) -> Seen:
            with looking((self.source, self.target)[number].conn):
                return self._seen_on(number)

        return on_both(partial(look, 0), partial(look, 1))

    def _seen_on(self, number: int) -> Seen:
        side = (self.source, self.target)[number]
        return seen(side, [pair[number] for pair in self.tables])


def seen(side: Side, tables: Sequence[MovedTable]) -> Seen:
    """Return what the catalogue says of the tables, in the caller's transaction."""
    mine = bindparam("tables", [table.oid for table in tables], ARRAY(OID))
    prefix = f"zz_datapatterns_{side.group_id}_{side.bucket}_"
    facts, guards, number = side.conn.execute(
        _FACTS.bindparams(mine), {"prefix": prefix, "ours": OURS}
    ).one()
    return Seen(facts, guards, number == _KINDS * len(tables))
