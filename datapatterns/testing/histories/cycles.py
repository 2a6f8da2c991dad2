"""Cycles in the dependency graph: which kinds there are, and a short one of each.

Whether a history has a cycle that a level forbids is always decided exactly and in linear time,
by components of the graph, or of two copies of it: in the second stands who was entered by an rw
edge, which must not be left by another one. (No two rw edges in a row is what snapshot isolation
means: Cerone and Gotsman, "Analysing snapshot isolation", 2016.) Real time needs no edges: a
shortest cycle has exactly one such step, so it is enough to know, for each transaction, when the
first of those that depend on it had ended.

Then short witnesses are searched, for as many steps as the graph has edges, times a constant.
Once these are used up, a cycle can be longer than need be, or be called G-nonadjacent or G2-item
though there is a G-single, too. No level allows the one and forbids the other where this happens.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from datapatterns.testing.histories.graph import KIND_BITS, KIND_MASK, Graph, Kind
from datapatterns.testing.histories.walking import (
    Steps,
    components,
    earliest_ends,
    latest_beginnings,
    shortest_path,
)

_SUFFIXES = ("", "-process", "-realtime")
_PREFERRED = (Kind.WW, Kind.WR, Kind.PROCESS, Kind.RW, Kind.REALTIME)


@dataclass(frozen=True, slots=True)
class Cycle:
    """Each transaction comes before the next, and the last before the first.

    Attributes:
        kinds: Why, for each of them.
    """

    transactions: tuple[int, ...]
    kinds: tuple[Kind, ...]

    @property
    def name(self) -> str:
        """Return the anomaly that it proves."""
        suffix = ""
        if Kind.REALTIME in self.kinds:
            suffix = "-realtime"
        elif Kind.PROCESS in self.kinds:
            suffix = "-process"
        return self._dependencies + suffix

    @property
    def _dependencies(self) -> str:
        count = self.kinds.count(Kind.RW)
        if not count:
            return "G1c" if Kind.WR in self.kinds else "G0"
        if count == 1:
            return "G-single"
        after = (*self.kinds[1:], self.kinds[0])
        adjacent = (Kind.RW, Kind.RW) in zip(self.kinds, after, strict=True)
        return "G2-item" if adjacent else "G-nonadjacent"


@dataclass(frozen=True, slots=True)
class _Level:
    """One anomaly, and where its cycles are.

    Attributes:
        kinds: The edges that a cycle follows.
        closing: The kind of which it has at least one.
        copies: How many copies of the graph are searched; rw edges lead from the first to the
            second, and none leads on from there.
        returns: Whether other edges lead back to the first copy.
    """

    name: str
    kinds: tuple[Kind, ...]
    closing: Kind
    copies: int = 1
    returns: bool = False

    @property
    def reentered(self) -> int:
        """Return the copy in which a cycle that left the first by its rw edge comes to its end."""
        return 1 if self.copies > 1 and not self.returns else 0


_PLAIN = (Kind.WW, Kind.WR)
_ALL = (Kind.WW, Kind.WR, Kind.RW)
_LEVELS = (
    _Level("G0", (Kind.WW,), Kind.WW),
    _Level("G1c", _PLAIN, Kind.WR),
    _Level("G-single", _ALL, Kind.RW, copies=2),
    _Level("G-nonadjacent", _ALL, Kind.RW, copies=2, returns=True),
    _Level("G2-item", _ALL, Kind.RW),
)
_STEPS_FOR_EACH_EDGE = 4


def find_cycles(graph: Graph, *, limit: int, steps: Steps) -> dict[str, list[Cycle]]:
    """Return up to ``limit`` short cycles for each anomaly, the shortest first."""
    everything = graph.successors((*_ALL, Kind.PROCESS))
    parts = components(everything, steps)
    search = _Search(limit, steps)
    if parts.cyclic:
        together = [part if part in parts.cyclic else -1 for part in parts.of]
        search.search_loops(graph.within(together))
    earliest = earliest_ends(everything, parts, graph.returned, steps)
    latest = latest_beginnings(everything, parts, graph.invoked, steps)
    late = [-(end >= begin) for end, begin in zip(earliest, latest, strict=True)]
    if 0 in late:
        search.search_against_time(graph.within(late))
    return search.strongest()


@dataclass(slots=True)
class _Search:
    limit: int
    steps: Steps
    found: defaultdict[str, dict[frozenset[int], Cycle]] = field(
        default_factory=lambda: defaultdict(dict)
    )

    def search_loops(self, graph: Graph) -> None:
        """Search cycles of dependencies, and those that the order of a process completes."""
        for kinds in ((), (Kind.PROCESS,)):
            for level in _LEVELS:
                if not self.found[level.name]:
                    self._search_loops(graph, level, (*level.kinds, *kinds))

    def search_against_time(self, graph: Graph) -> None:
        """Search dependencies on what had not begun yet."""
        for level in _LEVELS:
            if not (self.found[level.name] or self.found[f"{level.name}-process"]):
                self._search_against_time(graph, level)

    def strongest(self) -> dict[str, list[Cycle]]:
        """Return what was found; weaker evidence for the same anomaly adds nothing."""
        kept = {}
        for level in _LEVELS:
            names = [level.name + suffix for suffix in _SUFFIXES]
            if name := next((name for name in names if self.found[name]), None):
                shortest = sorted(self.found[name].values(), key=lambda cycle: len(cycle.kinds))
                kept[name] = shortest[: self.limit]
        return kept

    def _search_loops(self, graph: Graph, level: _Level, kinds: tuple[Kind, ...]) -> None:
        successors = _copied(graph, kinds, level)
        of = components(successors, self.steps).of
        copies = level.copies
        attempts = self._attempts(graph, level.name)
        for source, target in _edges(graph, level.closing):
            start, goal = target * copies + (copies - 1), source * copies + level.reentered
            if of[start] < of[goal]:
                continue  # nothing leads up
            if not next(attempts):
                return
            path = shortest_path(
                successors,
                start,
                is_goal=goal.__eq__,
                may_visit=lambda node, floor=of[goal]: of[node] >= floor,  # type: ignore[misc]
                first_junction=graph.transactions * copies,
                steps=self.steps,
            )
            if path is not None:
                self._add(graph, [source, *(node // copies for node in path[:-1])], kinds)

    def _search_against_time(self, graph: Graph, level: _Level) -> None:
        copies = level.copies
        successors = _copied(graph, level.kinds, level)
        returned = [end for end in graph.returned for _ in range(copies)]
        parts = components(successors, self.steps)
        earliest = earliest_ends(successors, parts, returned, self.steps)
        attempts = self._attempts(graph, f"{level.name}-realtime")
        for number, begin in enumerate(graph.invoked):
            if earliest[number * copies] >= begin:
                continue
            if not next(attempts):
                return
            path = shortest_path(
                successors,
                number * copies,
                is_goal=lambda node, begin=begin: returned[node] < begin,  # type: ignore[misc]
                may_visit=lambda node, begin=begin: earliest[node] < begin,  # type: ignore[misc]
                first_junction=graph.transactions * copies,
                steps=self.steps,
            )
            assert path is not None
            self._add(graph, [node // copies for node in path], level.kinds)

    def _attempts(self, graph: Graph, name: str) -> Iterator[bool]:
        """Yield whether one more search for ``name`` is worth its price; the first always is."""
        end = self.steps.taken + _STEPS_FOR_EACH_EDGE * (graph.edges + len(graph.out))
        yield True
        while self.steps.taken < end and len(self.found[name]) < self.limit:
            yield True
        yield False

    def _add(self, graph: Graph, nodes: Sequence[int], allowed: Sequence[Kind]) -> None:
        """Note what a closed walk proves; it may visit a transaction more than once."""
        hops = []
        for node, following in zip(nodes, (*nodes[1:], nodes[0]), strict=True):
            if node < graph.transactions:
                kinds = graph.kinds_between(node, following)
                hops.append((node, _strongest(kinds.intersection(allowed))))
        for cycle in _simple_cycles(hops):
            self.found[cycle.name].setdefault(frozenset(cycle.transactions), cycle)


def _edges(graph: Graph, kind: Kind) -> Iterator[tuple[int, int]]:
    for source, edges in enumerate(graph.out):
        for edge in edges:
            if edge & KIND_MASK == kind:
                yield source, edge >> KIND_BITS


def _copied(graph: Graph, kinds: Sequence[Kind], level: _Level) -> list[list[int]]:
    """Return the graph of a level. With two copies, node ``n`` is ``2n`` and ``2n + 1``."""
    if level.copies == 1:
        return graph.successors(kinds)
    successors: list[list[int]] = []
    for edges in graph.out:
        first: list[int] = []
        second: list[int] = []
        for edge in edges:
            target, kind = 2 * (edge >> KIND_BITS), edge & KIND_MASK
            if kind == Kind.THEN:
                first.append(target)
                second.append(target + 1)
            elif kind == Kind.RW:
                first.append(target + 1)
            elif kind in kinds:
                first.append(target)
                second.append(target if level.returns else target + 1)
        successors += (first, second)
    return successors


def _strongest(kinds: set[Kind]) -> Kind:
    # What ended before another began needs no edge, so no edge at all means that.
    return next((kind for kind in _PREFERRED if kind in kinds), Kind.REALTIME)


def _simple_cycles(hops: Sequence[tuple[int, Kind]]) -> Iterator[Cycle]:
    """Cut a closed walk where it comes back to where it was."""
    walk: list[tuple[int, Kind]] = []
    place: dict[int, int] = {}
    for node, kind in hops:
        if node in place:
            loop = walk[place[node] :]
            del walk[place[node] :]
            yield _cycle(loop)
            for passed, _ in loop:
                del place[passed]
        place[node] = len(walk)
        walk.append((node, kind))
    yield _cycle(walk)


def _cycle(hops: Sequence[tuple[int, Kind]]) -> Cycle:
    return Cycle(tuple(node for node, _ in hops), tuple(kind for _, kind in hops))
