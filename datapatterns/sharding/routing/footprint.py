"""Tell from a statement which rows it can touch, one SELECT at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import TypeVar, cast

from sqlalchemy import Alias, ColumnClause, FromClause, Join, Select, Table, TextClause, UpdateBase
from sqlalchemy.dialects.postgresql import dialect
from sqlalchemy.sql import visitors
from sqlalchemy.sql.elements import ClauseElement
from sqlalchemy.sql.selectable import (
    CTE,
    FromGrouping,
    SelectBase,
    Subquery,
    TableValuedAlias,
    TextualSelect,
    Values,
)

from datapatterns.errors import UnroutableStatementError
from datapatterns.sharding.definition import EntityGroup
from datapatterns.sharding.routing.early_conditions import (
    has_early_conditions,
    is_of_a_guard,
    locks_rows_below,
)
from datapatterns.sharding.routing.key_conditions import (
    KeyCondition,
    Leaf,
    Parameters,
    conjuncts,
    key_condition,
    key_tie,
)
from datapatterns.sharding.routing.part_conditions import confined_pairs, listed_pairs
from datapatterns.sharding.routing.placements import Placements
from datapatterns.sharding.routing.ties import are_tied, tie_both
from datapatterns.sharding.strategies.strategy import Key, ShardingStrategy

Item = TypeVar("Item", Key, int)

_DIALECT = dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it untyped
# What func.count(), EXISTS and guards put into a statement by themselves.
_HARMLESS_LITERALS = frozenset(("*", "1", "'owned'"))


@dataclass(frozen=True, slots=True)
class Block:
    """The sharded tables of one SELECT, and what holds for every row of it.

    Attributes:
        leaves: The uses of sharded tables.
        tied: Whether all rows that are combined have one key, so lie on one shard.
        outer: Whether a table may be missing from a row.
        conditions: What the rows' keys must be.
        outer_conditions: What the keys of tables must be that may be missing, unless they are.
        keeping: Whether an outer join keeps rows that every shard has, with NULLs where it finds
            no sharded row beside them: each shard would add its own.
        composite: Whether keys are two columns, so that conditions may be about a part.
    """

    leaves: tuple[Leaf, ...]
    tied: bool
    outer: bool
    conditions: tuple[KeyCondition, ...]
    outer_conditions: tuple[KeyCondition, ...] = ()
    keeping: bool = False
    composite: bool = False

    def keys(self, parameters: Parameters) -> frozenset[Key] | None:
        """Return the keys of all rows that this SELECT can use; None if that may be any."""
        if self.tied and self.conditions:
            return self._listed(self.conditions, parameters)
        # Untied tables are confined if each is: a condition in WHERE also drops the rows that an
        # outer join has filled with NULLs.
        conditions = (*self.conditions, *self.outer_conditions)
        return _union(
            [
                self._listed([each for each in conditions if each.leaf is leaf], parameters)
                for leaf in self.leaves
            ]
        )

    def buckets(self, parameters: Parameters, strategy: ShardingStrategy) -> frozenset[int] | None:
        """Return the buckets of all rows that this SELECT can use; None if that may be any."""
        if self.tied and self.conditions:
            return self._confined(self.conditions, parameters, strategy)
        conditions = (*self.conditions, *self.outer_conditions)
        return _union(
            [
                self._confined(
                    [each for each in conditions if each.leaf is leaf], parameters, strategy
                )
                for leaf in self.leaves
            ]
        )

    def _listed(
        self, conditions: Sequence[KeyCondition], parameters: Parameters
    ) -> frozenset[Key] | None:
        """Return the keys that satisfy all conditions that list some; None if none does."""
        if self.composite:
            return listed_pairs(conditions, parameters)
        return _intersection([condition.keys(parameters) for condition in conditions])

    def _confined(
        self,
        conditions: Sequence[KeyCondition],
        parameters: Parameters,
        strategy: ShardingStrategy,
    ) -> frozenset[int] | None:
        """Return the buckets of keys that satisfy all conditions; None if that may be any."""
        if self.composite:
            return confined_pairs(conditions, parameters, strategy)
        listed = [condition.keys(parameters) for condition in conditions]
        keys = _intersection(listed)
        others = [each for each, found in zip(conditions, listed, strict=True) if found is None]
        return _intersection(
            [
                None if keys is None else strategy.buckets_for("in", [*keys]),
                *(condition.buckets(parameters, strategy) for condition in others),
            ]
        )


@dataclass(frozen=True, slots=True)
class Footprint:
    """All that a statement reads.

    Attributes:
        group: The entity group of its tables.
        blocks: Each SELECT in it that names sharded tables.
        plain: Whether it is a single SELECT, without any other inside.
        broadcast: The tables in it that every shard holds a copy of. If there are no others, it
            has no blocks and no buckets, and any shard may answer; the group is any.
        early: Whether it may be answered before a guard in its WHERE is looked at, or locks rows
            below that.
    """

    group: EntityGroup
    blocks: tuple[Block, ...]
    plain: bool
    broadcast: frozenset[Table] = frozenset()
    early: bool = False
    _only: KeyCondition | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        # What most statements of one key are: looked for once, not for each of them.
        found = self.blocks[0].conditions if len(self.blocks) == 1 and self.blocks[0].tied else ()
        if len(found) == 1 and found[0].is_one_key:
            object.__setattr__(self, "_only", found[0])

    @property
    def tables(self) -> frozenset[str]:
        """Return the names of the sharded tables."""
        return frozenset(leaf.name for block in self.blocks for leaf in block.leaves)

    def keys(self, parameters: Parameters) -> frozenset[Key] | None:
        """Return the keys of all rows that the statement can use; None if that may be any."""
        return _union([block.keys(parameters) for block in self.blocks])

    def buckets(self, parameters: Parameters, strategy: ShardingStrategy) -> frozenset[int] | None:
        """Return the buckets that the statement can read from; None if that may be all."""
        if self._only is not None:
            return self._only.buckets_of_one(parameters, strategy)
        return _union([block.buckets(parameters, strategy) for block in self.blocks])


def footprint_of(
    statement: SelectBase, placements: Placements, *, strict: bool = True
) -> Footprint:
    """Return what ``statement`` reads.

    Args:
        statement: A SELECT, or a UNION of some.
        placements: What was declared about tables.
        strict: Whether to refuse SQL text and tables of which nothing was declared.

    Raises:
        UnroutableStatementError: It names a table of which nothing was declared, tables of two
            groups, or SQL text, into which nobody can look.
    """
    # What the ORM sends may hold more than what was written: eager loads, loader criteria.
    compiled_state = statement.compile(dialect=_DIALECT).compile_state
    sent = getattr(compiled_state, "statement", statement)
    selects = [part for part in visitors.iterate(sent) if isinstance(part, Select)]
    blocks = [block_of(select, placements, strict=strict) for select in selects]
    found = footprint_of_blocks(
        sent,
        [block for block in blocks if block.leaves],
        placements,
        plain=selects == [sent],
        strict=strict,
    )
    if found.plain or not isinstance(sent, Select):
        return found
    return replace(found, early=has_early_conditions(sent) or locks_rows_below(sent))


def footprint_of_blocks(
    statement: ClauseElement,
    blocks: Sequence[Block],
    placements: Placements,
    *,
    plain: bool,
    strict: bool = True,
) -> Footprint:
    """Return the footprint of a statement whose SELECTs have been looked at.

    Raises:
        UnroutableStatementError: As for `footprint_of`.
    """
    broadcast = _broadcast_tables(statement, blocks, placements, strict=strict)
    groups = {leaf.shard_key.group for block in blocks for leaf in block.leaves}
    if broadcast and not groups:
        groups = {placements.groups[0]}
    if len(groups) != 1:
        names = sorted(group.name for group in groups)
        raise UnroutableStatementError(
            f"the statement names tables of {names}" if names else "it names no sharded table",
            "use tables of one group, or a connection to one shard with ShardCluster.connect()",
        )
    return Footprint(groups.pop(), tuple(blocks), plain, broadcast)


def _broadcast_tables(
    statement: ClauseElement, blocks: Sequence[Block], placements: Placements, *, strict: bool
) -> frozenset[Table]:
    """Return the broadcast tables of a statement, and refuse what its blocks do not account for."""
    accounted = {leaf.table for block in blocks for leaf in block.leaves}
    broadcast: set[Table] = set()
    for part in visitors.iterate(statement):
        if part is not statement:
            refuse_change(cast("ClauseElement", part))
        if strict:
            refuse_text(cast("ClauseElement", part))
        if isinstance(part, Table) and part not in accounted and not is_of_a_guard(part):
            if placements.is_broadcast(part):
                broadcast.add(part)
                continue
            if not strict and placements.shard_key(part) is None:
                continue
            leaf_of(part, placements)  # names what is undeclared
            raise UnroutableStatementError(
                f"table {part.name!r} is used where its rows cannot be told from others",
                "join it, or read it in a statement of its own",
            )
    return frozenset(broadcast)


def block_of(
    select: Select[*tuple[object, ...]], placements: Placements, *, strict: bool = True
) -> Block:
    """Return the sharded tables of one SELECT, and what holds for every row of it."""
    conditions = list(conjuncts(select.whereclause))
    elements: list[_Element] = []
    for source in select.get_final_froms():
        for element, on in _inner_parts(source):
            conditions.extend(on)
            elements.append(_element(element, placements, strict=strict))
    leaves = [leaf for element in elements for leaf in element.leaves]
    ties = [tie for clause in conditions if (tie := key_tie(clause, leaves)) is not None]
    keyed = [key_condition(clause, leaves) for clause in conditions]
    return Block(
        leaves=tuple(leaves),
        tied=all(element.tied for element in elements)
        and are_tied([element.leaves for element in elements], ties),
        outer=any(element.outer for element in elements),
        conditions=tuple(condition for condition in keyed if condition is not None),
        outer_conditions=tuple(found for element in elements for found in element.conditions),
        keeping=any(element.keeping for element in elements),
        composite=any(leaf.shard_key.is_composite for leaf in leaves),
    )


@dataclass(frozen=True, slots=True)
class _Element:
    """A table, or an outer join: what a FROM clause combines by inner joins only."""

    leaves: tuple[Leaf, ...]
    tied: bool = True
    outer: bool = False
    conditions: tuple[KeyCondition, ...] = ()
    keeping: bool = False


def _inner_parts(source: FromClause) -> Iterator[tuple[FromClause, list[ClauseElement]]]:
    """Take inner joins apart: their ON is as good as a WHERE."""
    source = _ungrouped(source)
    if isinstance(source, Join) and not source.isouter and not source.full:
        yield from _inner_parts(source.left)
        right = list(_inner_parts(source.right))
        right[0][1].extend(conjuncts(source.onclause))
        yield from right
    else:
        yield source, []


def _element(source: FromClause, placements: Placements, *, strict: bool) -> _Element:
    source = _ungrouped(source)
    if isinstance(source, Join):
        # The ON of an outer join keeps rows together only if it compares their keys itself.
        left = _element(source.left, placements, strict=strict)
        right = _element(source.right, placements, strict=strict)
        leaves = [*left.leaves, *right.leaves]
        ties = [key_tie(clause, leaves) for clause in conjuncts(source.onclause)]
        crossing = tie_both(left.leaves, right.leaves, [tie for tie in ties if tie is not None])
        alone = not left.leaves or not right.leaves
        kept = (left, right) if source.full else (left,) if source.isouter else ()
        keeping = bool(leaves) and any(not side.leaves for side in kept)
        # Nor does it confine the table whose rows all stay.
        confined = [] if source.full else list(right.leaves) if source.isouter else leaves
        keyed = [key_condition(clause, confined) for clause in conjuncts(source.onclause)]
        found = [condition for condition in keyed if condition is not None]
        return _Element(
            tuple(leaves),
            left.tied and right.tied and (crossing or alone),
            outer=True,
            conditions=(*left.conditions, *right.conditions, *found),
            keeping=keeping or left.keeping or right.keeping,
        )
    named = source.element if isinstance(source, Alias) else source  # Query.count() names one twice
    if isinstance(named, Subquery | CTE | Values | TableValuedAlias) or is_of_a_guard(source):
        return _Element(())
    if placements.is_broadcast(named):
        return _Element(())
    if not strict and placements.shard_key(getattr(source, "element", source)) is None:
        return _Element(())
    return _Element((leaf_of(source, placements),))


def leaf_of(used: FromClause, placements: Placements) -> Leaf:
    """Return one use of a table, or of an alias of it.

    Raises:
        UnroutableStatementError: Nothing was declared about the table, or it is something else.
    """
    table = used.element if isinstance(used, Alias) else used
    if not isinstance(table, Table):
        raise UnroutableStatementError(
            f"the statement uses some {type(table).__name__}", "name a table or an alias instead"
        )
    shard_key = placements.shard_key(table)
    if shard_key is None:
        raise UnroutableStatementError(
            f"nothing was declared about table {table.name!r}, so its rows may be anywhere",
            "give its class a __shard__, or work on one shard with ShardCluster.on()",
        )
    return Leaf(used, table, shard_key)


def _ungrouped(source: FromClause) -> FromClause:
    while isinstance(source, FromGrouping):
        source = source.element
    return source


def refuse_change(part: ClauseElement) -> None:
    """Refuse an INSERT, UPDATE or DELETE inside of another statement.

    Raises:
        UnroutableStatementError: It is one.
    """
    if isinstance(part, UpdateBase):
        raise UnroutableStatementError(
            f"the statement contains another {type(part).__name__.upper()}",
            "run that one by itself, in the same transaction",
        )


def refuse_text(part: ClauseElement) -> None:
    """Refuse SQL text.

    Raises:
        UnroutableStatementError: It is some.
    """
    is_text = isinstance(part, TextClause | TextualSelect) or (
        isinstance(part, ColumnClause) and part.is_literal and part.name not in _HARMLESS_LITERALS
    )
    if is_text:
        raise UnroutableStatementError(
            "the statement contains SQL text, which may say anything",
            "write it in expressions, or work on one shard with ShardCluster.on()",
        )


def _intersection(sets: Sequence[frozenset[Item] | None]) -> frozenset[Item] | None:
    known = [each for each in sets if each is not None]
    return reduce(frozenset.intersection, known) if known else None


def _union(sets: Sequence[frozenset[Item] | None]) -> frozenset[Item] | None:
    known = [each for each in sets if each is not None]
    return frozenset[Item]().union(*known) if len(known) == len(sets) else None
