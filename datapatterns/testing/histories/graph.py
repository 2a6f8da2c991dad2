"""Who depends on whom: the dependency graph of a history, in integers and linear in its size."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise

from datapatterns.testing.histories.events import NEVER, Key, Transaction
from datapatterns.testing.histories.lists import NOBODY, ListOrder

KIND_BITS = 3
KIND_MASK = (1 << KIND_BITS) - 1


class Kind(IntEnum):
    """Why one transaction comes after another."""

    WW = 0
    """It appended right after the other's append."""
    WR = 1
    """It read the other's append."""
    RW = 2
    """It appended what the other did not see."""
    PROCESS = 3
    """It is the same client's next."""
    THEN = 4
    """No reason of its own: a junction leads on to it."""
    REALTIME = 5
    """It began after the other had been acknowledged; kept as two times, not as edges."""


@dataclass(frozen=True, slots=True)
class Graph:
    """The dependencies between transactions.

    Appends that nobody ever read come after every read that sees all the others, and in no known
    order: that would be readers times writers edges. They meet in *junctions* instead, nodes
    after the transactions that only lead on, so that the graph stays linear.

    Attributes:
        transactions: How many there are: their numbers are the first nodes.
        out: For each node its edges, as ``target << KIND_BITS | kind``.
        invoked: When a node began; never too late for a junction.
        returned: When it was acknowledged.
    """

    transactions: int
    out: list[list[int]]
    invoked: list[float]
    returned: list[float]

    @property
    def edges(self) -> int:
        """Return how many edges there are."""
        return sum(map(len, self.out))

    def successors(self, kinds: Iterable[Kind]) -> list[list[int]]:
        """Return, for each node, where edges of these kinds, and those of junctions, lead."""
        wanted = _mask(kinds)
        return [
            [edge >> KIND_BITS for edge in edges if wanted >> (edge & KIND_MASK) & 1]
            for edges in self.out
        ]

    def within(self, groups: Sequence[int]) -> "Graph":
        """Return the graph with only the edges inside a group; who is in none has -1."""
        out = [
            [edge for edge in edges if groups[edge >> KIND_BITS] == group] if group >= 0 else []
            for group, edges in zip(groups, self.out, strict=True)
        ]
        return Graph(self.transactions, out, self.invoked, self.returned)

    def kinds_between(self, source: int, target: int) -> set[Kind]:
        """Return why ``target`` comes after ``source``."""
        return {Kind(e & KIND_MASK) for e in self.out[source] if e >> KIND_BITS == target}


def _mask(kinds: Iterable[Kind]) -> int:
    mask = 1 << Kind.THEN
    for kind in kinds:
        mask |= 1 << kind
    return mask


def build_graph(lists: Mapping[Key, ListOrder], transactions: Sequence[Transaction]) -> Graph:
    """Return the graph of what reads and appends say, and of the order of each process."""
    out: list[list[int]] = [[] for _ in transactions]
    for order in lists.values():
        _add_list(out, order)
    _add_processes(out, transactions)
    junctions = len(out) - len(transactions)
    return Graph(
        len(transactions),
        out,
        [float(each.invoked) for each in transactions] + [-NEVER] * junctions,
        [each.returned for each in transactions] + [NEVER] * junctions,
    )


def _add_list(out: list[list[int]], order: ListOrder) -> None:
    writers = [number for number in order.committed if number != NOBODY]
    for number, following in pairwise(writers):
        if number != following:
            out[number].append(following << KIND_BITS | Kind.WW)
    complete = _add_reads(out, order)
    if order.unseen:
        _add_unseen(out, order.unseen, writers[-1:], complete)


def _add_reads(out: list[list[int]], order: ListOrder) -> list[int]:
    """Add what reads say; return who has read all that anybody has."""
    before, after = _neighbours(order)
    complete = []
    for number, values in order.reads:
        length = len(values)
        writer = before[length]
        if writer not in (NOBODY, number):
            out[writer].append(number << KIND_BITS | Kind.WR)
        writer = after[length]
        if writer == NOBODY:
            complete.append(number)
        elif writer != number:
            out[number].append(writer << KIND_BITS | Kind.RW)
    for number, writer, _ in order.strays:
        if writer != number:
            out[writer].append(number << KIND_BITS | Kind.WR)
    return complete


def _neighbours(order: ListOrder) -> tuple[list[int], list[int]]:
    """Return, for each length of a read, whose append it ends with and whose comes next."""
    before = [NOBODY]
    for number in order.committed:
        before.append(before[-1] if number == NOBODY else number)
    after = [NOBODY]
    for number in reversed(order.committed):
        after.append(after[-1] if number == NOBODY else number)
    return before, after[::-1]


def _add_unseen(
    out: list[list[int]], unseen: Sequence[int], last: Iterable[int], readers: Iterable[int]
) -> None:
    """Let each of ``unseen`` come after ``last`` and ``readers``, but nobody after himself."""
    # Two chains of junctions: from the first, `at` reaches unseen[: at + 1], from the second
    # unseen[at:]. Who is at a place himself enters them beside it.
    count = len(unseen)
    upwards = len(out)
    downwards = upwards + count
    for at, number in enumerate(unseen):
        back = [upwards + at - 1] if at else []
        out.append([node << KIND_BITS | Kind.THEN for node in (number, *back)])
    for at, number in enumerate(unseen):
        on = [downwards + at + 1] if at + 1 < count else []
        out.append([node << KIND_BITS | Kind.THEN for node in (number, *on)])
    place = {number: at for at, number in enumerate(unseen)}
    for kind, numbers in ((Kind.WW, last), (Kind.RW, readers)):
        for number in numbers:
            at = place.get(number, count)
            if at:
                out[number].append((upwards + at - 1) << KIND_BITS | kind)
            if at + 1 < count:
                out[number].append((downwards + at + 1) << KIND_BITS | kind)


def _add_processes(out: list[list[int]], transactions: Sequence[Transaction]) -> None:
    latest: dict[int, int] = {}
    for number, transaction in enumerate(transactions):
        if transaction.type == "fail":
            continue
        before = latest.get(transaction.process)
        if before is not None:
            out[before].append(number << KIND_BITS | Kind.PROCESS)
        latest[transaction.process] = number
