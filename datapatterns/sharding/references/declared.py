"""The references of a cluster: which tables have them, and where their parents lie."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Table

from datapatterns.sharding.definition import ShardKey
from datapatterns.sharding.references.definition import ShardForeignKey, Values
from datapatterns.sharding.routing.placements import Placements
from datapatterns.sharding.strategies.strategy import Key


@dataclass(frozen=True, slots=True, eq=False)
class PlacedReference:
    """A reference between two tables whose shard keys are known.

    Attributes:
        declared: What was declared.
        child_key: The shard key of the child's table.
        parent_key: That of the parent's.
    """

    declared: ShardForeignKey
    child_key: ShardKey
    parent_key: ShardKey

    @property
    def name(self) -> str:
        """Return what it is called."""
        return self.declared.name

    def parent_shard_key(self, values: Values) -> Key:
        """Return the shard key of the row that these values refer to.

        Raises:
            ShardKeyError: It is of another type than the group's keys.
        """
        named = dict(zip((c.name for c in self.declared.parent), values, strict=True))
        columns = self.parent_key.checked_columns(self.declared.parent_table)
        return self.parent_key.group.stored_key(self.parent_key.value_in(named), *columns)

    def child_shard_key(self, values: Values) -> Key | None:
        """Return the shard key of all rows that refer so; None if it does not follow from that."""
        named = dict(zip((c.name for c in self.declared.child), values, strict=True))
        if not named.keys() >= {*self.child_key.columns}:
            return None
        columns = self.child_key.checked_columns(self.declared.child_table)
        return self.child_key.group.stored_key(self.child_key.value_in(named), *columns)


@dataclass(frozen=True, slots=True)
class References:
    """All references of a cluster.

    Attributes:
        all: Each of them.
    """

    all: tuple[PlacedReference, ...] = ()
    _children: dict[Table, list[PlacedReference]] = field(default_factory=dict)
    _parents: dict[Table, list[PlacedReference]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        declared: Sequence[ShardForeignKey],
        placements: Placements,
        *,
        citus: Collection[str] = (),
    ) -> "References":
        """Return references whose tables are sharded, checked.

        Raises:
            ReferenceDefinitionError: One of them cannot be kept.
            ShardedTableError: A table cannot be sharded as it is declared.
        """
        names: set[str] = set()
        for one in declared:
            if one.name in names:
                raise one.refuse("there are two of that name", "give one of them another name=")
            names.add(one.name)
            if citus:
                raise one.refuse(
                    f"{', '.join(sorted(citus))} is a coordinator of Citus, whose nodes cannot be"
                    " asked what they own",
                    "let Citus keep foreign keys there, or keep references to other shards",
                )
        placed = tuple(_placed(one, placements) for one in declared)
        found = cls(placed)
        for each in placed:
            if each.declared.check == "on_write":
                found._children.setdefault(each.declared.child_table, []).append(each)
                found._parents.setdefault(each.declared.parent_table, []).append(each)
        return found

    def __bool__(self) -> bool:
        return bool(self._children)

    def of_child(self, table: Any) -> Sequence[PlacedReference]:  # noqa: ANN401 -- whatever a statement names
        """Return the references that are checked when rows of ``table`` are written."""
        return self._children.get(table, ())

    def of_parent(self, table: Any) -> Sequence[PlacedReference]:  # noqa: ANN401 -- whatever a statement names
        """Return the references that are checked when rows of ``table`` go."""
        return self._parents.get(table, ())


NO_REFERENCES = References()


def _placed(declared: ShardForeignKey, placements: Placements) -> PlacedReference:
    for table in declared.child_table, declared.parent_table:
        if placements.is_broadcast(table):
            advice = (
                "a ForeignKey does that: the row is on every shard"
                if table is declared.parent_table
                else "let a sharded table refer; its own rows would each refer from every shard"
            )
            raise declared.refuse(f"every shard has a copy of {table.name}", advice)
        if placements.shard_key(table) is None:
            raise declared.refuse(
                f"nothing was declared about where {table.name} lies", "give it a __shard__"
            )
    child_key = placements.shard_key(declared.child_table)
    parent_key = placements.shard_key(declared.parent_table)
    assert child_key is not None
    assert parent_key is not None
    names = [column.name for column in declared.parent]
    if not {*parent_key.columns}.issubset(names):
        raise declared.refuse(
            f"it does not say the shard key of {declared.parent_table.name}"
            f" ({parent_key.named}), so nobody knows on which shard to look",
            "let rows carry it, too, and refer by all columns of the key",
        )
    beside = {names.index(name): place for place, name in enumerate(parent_key.columns)}
    together = child_key.group is parent_key.group and all(
        declared.child[at].name == child_key.columns[place] for at, place in beside.items()
    )
    if together:
        raise declared.refuse(
            "both rows lie on one shard, as they have the same shard key",
            "declare a ForeignKey, which the server itself keeps",
        )
    return PlacedReference(declared, child_key, parent_key)
