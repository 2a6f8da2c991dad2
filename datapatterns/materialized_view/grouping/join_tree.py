"""Which conditions lead from a changed row to what it may concern, across outer joins.

A row of a join changes because a row of some table has come or gone. Either that row is part of
it; or it is what an outer join had found, or had not. In both cases there is a combination of
rows, each of its table as it was or as it is, that has the changed row in it and agrees with the
joined row wherever that one is not NULL. (By induction over the tree: an outer join finds a match
in one state only if, in that state only, there is such a row on its other side.) A *route* leads
from the changed row to the rest of that combination, by conditions that are true in it wherever
both of their rows are there; what they miss out is too much, never too little.

Tables are numbers here, once for each time that they occur; what a condition says is not looked at.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

Side: TypeAlias = tuple[int, ...]
"""A part of the tree: the way there from its root, 0 to the left, 1 to the right."""


class JoinKind(StrEnum):
    """What a join does with rows that match nothing; a RIGHT JOIN is a LEFT JOIN turned round."""

    INNER = "inner"
    LEFT = "left"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Condition:
    """One of the conditions that all have to hold.

    Attributes:
        expression: What it says.
        occurrences: The tables that it names.
        strict: Those without whose values it cannot be true.
        evaluable: Whether no values whatever make it fail.
        compares: Whether it compares something of one table with something of another.
    """

    expression: Any
    occurrences: frozenset[int]
    strict: frozenset[int]
    evaluable: bool
    compares: bool


@dataclass(frozen=True, slots=True)
class Joined:
    """Two parts of a FROM clause and how they are joined."""

    kind: JoinKind
    left: "Node"
    right: "Node"
    on: tuple[Condition, ...] = ()


Node: TypeAlias = int | Joined


@dataclass(frozen=True, slots=True)
class Step:
    """The next table of a route.

    Attributes:
        occurrence: The table.
        conditions: What must hold of it, and between it and earlier tables of the route.
        optional: Whether the combination may be without it.
    """

    occurrence: int
    conditions: tuple[Condition, ...]
    optional: bool


class JoinTree:
    """A FROM clause with its WHERE.

    Attributes:
        root: The FROM clause; what commas separate is joined by an inner join without conditions.
        where: The conditions of WHERE.
        occurrences: All tables, as often as they occur.
    """

    def __init__(self, root: Node, where: tuple[Condition, ...] = ()) -> None:
        """Find out which sides outer joins may leave out, and what can be relied on."""
        self.root = root
        self.where = where
        self._paths: dict[int, Side] = {}
        self._joins: dict[Side, Joined] = {}
        self._nullable: set[Side] = set()
        self._visit(root, ())
        self.occurrences = sorted(self._paths)
        self._usable = list(self._find_usable())

    def nullable(self) -> list[int]:
        """Return the tables that a joined row may be without."""
        there = self.there_with(())
        return [occurrence for occurrence in self.occurrences if occurrence not in there]

    def there_with(self, given: Iterable[int]) -> frozenset[int]:
        """Return all that is part of a joined row which ``given`` are part of."""
        there = {*given, *(o for condition in self.where for o in condition.strict)}
        while True:
            kept = {side for occurrence in there for side in self._sides(occurrence)}
            more = {o for o in self.occurrences if self._sides(o) <= kept}
            for left in there:
                for right in there - {left}:
                    # They have met, so what was asked for there was true.
                    more.update(o for c in self._meeting(left, right).on for o in c.strict)
            if more <= there:
                return frozenset(there)
            there |= more

    def filters(self, occurrence: int) -> tuple[Condition, ...]:
        """Return what is true of this table's row in every combination that has one."""
        return tuple(c for c in self._usable if c.occurrences == {occurrence})

    def route(self, start: int, wanted: Iterable[int]) -> list[Step]:
        """Return the way from ``start`` to all ``wanted`` tables."""
        wanted = set(wanted) - {start}
        joined: list[int] = [start]
        steps: list[Step] = []
        missing = [*sorted(wanted), *(o for o in self.occurrences if o not in {start, *wanted})]
        while not wanted <= set(joined):
            near = [(o, self._connections(start, joined, o)) for o in missing]
            found = next((pair for pair in near if pair[1]), None)
            # Nothing leads there: then it may be any row of it.
            occurrence, connections = found or (min(wanted - set(joined)), ())
            optional = occurrence not in self.there_with({start})
            conditions = (*connections, *self.filters(occurrence))
            steps.append(Step(occurrence, conditions, optional))
            joined.append(occurrence)
            missing.remove(occurrence)
        return _without_detours(steps, wanted)

    def _connections(
        self, start: int, joined: Iterable[int], occurrence: int
    ) -> tuple[Condition, ...]:
        # A table that the combination may be without has any row, or none, on the route: what is
        # said about that row must not decide.
        sure = self.there_with({start, occurrence}) & set(joined)
        return tuple(
            condition
            for condition in self._usable
            if condition.compares
            and occurrence in condition.occurrences
            and condition.occurrences - {occurrence} <= sure
        )

    def _visit(self, node: Node, path: Side) -> None:
        if isinstance(node, int):
            self._paths[node] = path
            return
        self._joins[path] = node
        if node.kind is JoinKind.FULL:
            self._nullable.add((*path, 0))
        if node.kind is not JoinKind.INNER:
            self._nullable.add((*path, 1))
        self._visit(node.left, (*path, 0))
        self._visit(node.right, (*path, 1))

    def _sides(self, occurrence: int, below: int = 0) -> set[Side]:
        """Return the sides with this table that outer joins may leave out."""
        path = self._paths[occurrence]
        sides = (path[:length] for length in range(below + 1, len(path) + 1))
        return {side for side in sides if side in self._nullable}

    def _meeting(self, left: int, right: int) -> Joined:
        pairs = zip(self._paths[left], self._paths[right], strict=False)
        common = next(i for i, (a, b) in enumerate(pairs) if a != b)
        return self._joins[self._paths[left][:common]]

    def _find_usable(self) -> Iterator[Condition]:
        """Find the conditions that are true in a combination wherever their rows are there."""
        there = self.there_with(())
        for condition in self.where:
            # Where a joined row is without a row that the combination has, WHERE said nothing
            # about that one.
            known = condition.occurrences <= condition.strict | there
            if condition.evaluable and condition.occurrences and known:
                yield condition
        for path, node in self._joins.items():
            for condition in node.on:
                if condition.evaluable and self._decides(node, path, condition):
                    yield condition

    def _decides(self, node: Joined, path: Side, condition: Condition) -> bool:
        inside = len(path) + 1
        places = {self._paths[o][len(path)] for o in condition.occurrences}
        known = all(
            occurrence in condition.strict or not self._sides(occurrence, below=inside)
            for occurrence in condition.occurrences
        )
        # An outer join also keeps rows for which its condition is not true.
        decides = {
            JoinKind.INNER: bool(places),
            JoinKind.LEFT: 1 in places,
            JoinKind.FULL: places == {0, 1},
        }
        return known and decides[node.kind]


def _without_detours(steps: list[Step], wanted: set[int]) -> list[Step]:
    needed, kept = set(wanted), []
    for step in reversed(steps):
        if step.occurrence in needed:
            kept.append(step)
            needed.update(o for condition in step.conditions for o in condition.occurrences)
    return kept[::-1]
