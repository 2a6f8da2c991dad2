"""Walks over a graph of integers: components, earliest ends, shortest paths."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Steps:
    """Counts edges that were followed, so that a search can end and a test can see that it does."""

    taken: int = 0


@dataclass(frozen=True, slots=True)
class Components:
    """The strongly connected components of a graph.

    Attributes:
        of: For each node its component. No edge leads from a lower number to a higher one.
        order: All nodes, component by component, lowest first.
        cyclic: The components of more than one node.
    """

    of: list[int]
    order: list[int]
    cyclic: set[int] = field(default_factory=set)


def components(  # noqa: C901, PLR0915 -- one algorithm; calls would double its time
    successors: Sequence[Sequence[int]], steps: Steps
) -> Components:
    """Return the components (Tarjan, "Depth-first search and linear graph algorithms", 1972).

    Without recursion: a history may be one chain of 100,000 transactions.
    """
    count = len(successors)
    index = [0] * count  # 0: not seen yet
    low = [0] * count
    of = [-1] * count
    order: list[int] = []
    cyclic: set[int] = set()
    stack: list[int] = []
    seen = component = 0
    for root in range(count):
        if index[root]:
            continue
        seen += 1
        index[root] = low[root] = seen
        if not successors[root]:  # most are like that where only the bad part is searched
            of[root] = component
            order.append(root)
            component += 1
            continue
        stack.append(root)
        work = [(root, iter(successors[root]))]
        while work:
            node, rest = work[-1]
            for target in rest:
                if not index[target]:
                    seen += 1
                    index[target] = low[target] = seen
                    stack.append(target)
                    work.append((target, iter(successors[target])))
                    break
                if of[target] < 0 and index[target] < low[node]:
                    low[node] = index[target]
            else:
                work.pop()
                if work and low[node] < low[work[-1][0]]:
                    low[work[-1][0]] = low[node]
                if low[node] == index[node]:
                    size = len(order)
                    while of[node] < 0:
                        member = stack.pop()
                        of[member] = component
                        order.append(member)
                    if len(order) - size > 1:
                        cyclic.add(component)
                    component += 1
    steps.taken += count + sum(map(len, successors))
    return Components(of, order, cyclic)


def earliest_ends(
    successors: Sequence[Sequence[int]],
    parts: Components,
    ends: Sequence[float],
    steps: Steps,
) -> list[float]:
    """Return, for each node, the earliest of ``ends`` among all that can be reached from it."""
    earliest = list(ends)
    of = parts.of
    best = [float("inf")] * (max(of, default=-1) + 1)
    for node in parts.order:  # what a component leads to comes before it
        found = earliest[node]
        for target in successors[node]:
            reached = best[of[target]]
            found = min(found, reached)
        best[of[node]] = min(best[of[node]], found)
    steps.taken += len(of) + sum(map(len, successors))
    return [best[part] for part in of]


def latest_beginnings(
    successors: Sequence[Sequence[int]],
    parts: Components,
    beginnings: Sequence[float],
    steps: Steps,
) -> list[float]:
    """Return, for each node, the latest of ``beginnings`` among all that lead to it."""
    of = parts.of
    best = [float("-inf")] * (max(of, default=-1) + 1)
    for node, begin in enumerate(beginnings):
        best[of[node]] = max(best[of[node]], begin)
    for node in reversed(parts.order):  # what leads to a component comes after it
        begin = best[of[node]]
        for target in successors[node]:
            best[of[target]] = max(best[of[target]], begin)
    steps.taken += len(of) + sum(map(len, successors))
    return [best[part] for part in of]


def shortest_path(
    successors: Sequence[Sequence[int]],
    start: int,
    *,
    is_goal: Callable[[int], bool],
    may_visit: Callable[[int], bool],
    first_junction: int,
    steps: Steps,
) -> list[int] | None:
    """Return the nodes of a shortest path, or None. Ways out of a junction cost nothing.

    Junctions are the nodes from ``first_junction`` on.
    """
    distance = {start: 0}
    previous = {start: start}
    settled: set[int] = set()
    queue = deque([start])
    while queue:
        node = queue.popleft()
        if node in settled:
            continue
        settled.add(node)
        if is_goal(node):
            return _path(previous, node)
        is_junction = node >= first_junction
        far = distance[node] + (not is_junction)
        steps.taken += 1 + len(successors[node])
        for target in successors[node]:
            if far < distance.get(target, far + 1) and may_visit(target):
                distance[target] = far
                previous[target] = node
                if is_junction:
                    queue.appendleft(target)
                else:
                    queue.append(target)
    return None


def _path(previous: dict[int, int], node: int) -> list[int]:
    path = [node]
    while previous[node] != node:
        node = previous[node]
        path.append(node)
    return path[::-1]
