"""A server more, then one less, while tills go on writing and somebody goes on counting."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from statistics import median
from threading import Event, Lock
from time import perf_counter

from sqlalchemy import func, select

from datapatterns.connecting import open_engine
from datapatterns.errors import MoveRefusedError, StaleShardMapError
from datapatterns.sharding import Move, MoveProgress, ShardCluster, ShardStats
from datapatterns_grocer.chapters.baskets_on_shards import (
    Paid,
    kept_back,
    placed_before,
    store,
)
from datapatterns_grocer.model import (
    BY_LOYALTY_NUMBER,
    BY_PRODUCT,
    HOUSEHOLDS,
    BasketRow,
    Sharded,
    loyalty_number,
)
from datapatterns_grocer.screen import milliseconds
from datapatterns_grocer.stage import Stage
from datapatterns_grocer.truth import Check, compare

NEW, LEAVING = "s4", "s0"
TILLS = 3
MOVES_AT_ONCE = 2
_THINKING_SECONDS = 0.02


def play(stage: Stage) -> None:
    """Grow from four shards to five, and drain the first, under a load that notices mistakes."""
    stage.screen.heading(
        "Growing",
        f"{NEW} joins and {LEAVING} leaves, while {TILLS} tills write baskets, somebody counts all"
        " of them, and somebody looks households and baskets up.",
    )
    with closing(stage.cluster()) as cluster:
        load = Load(cluster, kept_back(stage), placed_before(stage), already=_count(cluster))
        moves: list[Move] = []
        with ThreadPoolExecutor(TILLS + 2) as pool:
            threads = [pool.submit(load.write) for _ in range(TILLS)]
            threads += [pool.submit(load.count), pool.submit(load.find)]
            try:
                moves = _grow_and_drain(stage, cluster, load)
            except MoveRefusedError as error:  # on a server of the user's
                stage.screen.say(f"nothing was moved: {error}")
            finally:
                load.are_moves_done.set()
        for thread in threads:
            thread.result()
    if moves:
        _tell(stage, load, moves)


def verify(stage: Stage) -> Iterator[Check]:
    """See that the shard that left holds nothing, and that nothing lies where nobody looks."""
    with closing(stage.cluster()) as cluster:
        if NEW not in cluster.router.map_of(HOUSEHOLDS).owners:
            return  # it was refused
        held = {shard.shard: shard for shard in cluster.stats()}
    left = held.pop(LEAVING)
    misplaced = sum(table.misplaced for shard in held.values() for table in shard.tables)
    yield compare(
        "shards: baskets on those that stayed, none misplaced",
        derived=[(sum(map(_baskets, held.values())), misplaced)],
        truth=stage.dataset.rows("SELECT count(DISTINCT basket_id), 0 FROM sold"),
    )
    yield compare(
        f"shards: {LEAVING} is empty",
        derived=[(sum(table.rows for table in left.tables), len(left.buckets))],
        truth=[(0, 0)],
    )


@dataclass(slots=True)
class Load:
    """Tills that write baskets, and an auditor who counts all of them meanwhile.

    Attributes:
        cluster: Where they are written.
        baskets: What is still to be written.
        known: Baskets that are there from the beginning.
        already: How many baskets there were before.
        are_moves_done: Set as soon as nobody needs to wait between two baskets any more.
        seconds: How long each basket took to be stored, repetitions included.
        meanwhile: How many were stored before the moves were done.
        repeated: How often a till or the auditor came with an old map, and began again.
        counted: How often all baskets were counted.
        found: How often a household and a basket were looked up, through index tables.
    """

    cluster: ShardCluster
    baskets: Sequence[Paid]
    known: Sequence[Paid]
    already: int
    are_moves_done: Event = field(default_factory=Event)
    seconds: list[float] = field(default_factory=list)
    meanwhile: int = 0
    repeated: int = 0
    counted: int = 0
    found: int = 0
    _begun: int = 0
    _lock: Lock = field(default_factory=Lock)

    def write(self) -> None:
        """Store baskets until there are none left, and take a breath between two of them."""
        while True:
            with self._lock:
                if self._begun == len(self.baskets):
                    return
                basket = self.baskets[self._begun]
                self._begun += 1
            began = perf_counter()
            while not self._is_stored(basket):
                pass
            with self._lock:
                self.seconds.append(perf_counter() - began)
                self.meanwhile += not self.are_moves_done.is_set()
            self.are_moves_done.wait(_THINKING_SECONDS)

    def count(self) -> None:
        """Ask all shards for the number of baskets, which must be one that there can be."""
        while not self.are_moves_done.is_set():
            with self._lock:
                least = self.already + len(self.seconds)
            try:
                found = _count(self.cluster)
            except StaleShardMapError:
                self.repeated += 1
                continue
            with self._lock:
                most = self.already + self._begun
            if not least <= found <= most:
                raise AssertionError(f"{found} baskets where {least} to {most} can be")
            self.counted += 1

    def find(self) -> None:
        """Look households up by their loyalty numbers, and their baskets by a product."""
        for basket in cycle(self.known):
            if self.are_moves_done.is_set():
                return
            number = loyalty_number(basket.row.household_id)
            product_id = min(basket.products)
            try:
                with self.cluster.session(scatter=True) as session:
                    households = BY_LOYALTY_NUMBER.lookup(session, number)
                with self.cluster.session(scatter=True) as session:
                    baskets = BY_PRODUCT.lookup(session, product_id)
            except StaleShardMapError:
                self.repeated += 1
                continue
            if [each.household_id for each in households] != [basket.row.household_id]:
                raise AssertionError(f"{number} leads to {len(households)} households")
            if basket.row.basket_id not in {each.basket_id for each in baskets}:
                raise AssertionError(f"no entry of product {product_id} leads to its basket")
            self.found += 1

    def _is_stored(self, basket: Paid) -> bool:
        try:
            store(self.cluster, basket)
        except StaleShardMapError:  # its household has just moved; the map has been read again
            with self._lock:
                self.repeated += 1
            return False
        return True


def _grow_and_drain(stage: Stage, cluster: ShardCluster, load: Load) -> list[Move]:
    engine = open_engine(stage.layer.settings.shards[NEW])  # it is no shard yet
    Sharded.metadata.create_all(engine)
    engine.dispose()
    cluster.add_shard(NEW)
    held = [_baskets_on(cluster)]
    plan = cluster.plan(HOUSEHOLDS, threshold=0.05)
    with _progress(stage, f"moving buckets to {NEW}", len(plan)) as told:
        moves = cluster.rebalance(
            plan, max_parallel=MOVES_AT_ONCE, clean_after_seconds=0, progress=told
        )
    held.append(_baskets_on(cluster))
    with _progress(stage, f"draining {LEAVING}", _buckets_on(cluster, LEAVING)) as told:
        moves += cluster.drain(
            LEAVING, max_parallel=MOVES_AT_ONCE, clean_after_seconds=0, progress=told
        )
    cluster.remove_shard(LEAVING)
    held.append(_baskets_on(cluster))
    load.are_moves_done.set()
    for title, baskets in zip(("before", f"with {NEW}", f"without {LEAVING}"), held, strict=True):
        stage.screen.say(f"{title}:")
        stage.screen.bars(baskets, "baskets")
    return moves


@contextmanager
def _progress(stage: Stage, doing: str, moves: int) -> Iterator[Callable[[MoveProgress], None]]:
    with stage.screen.progress(doing, total=moves) as advance:

        def told(progress: MoveProgress) -> None:
            if progress.move.state == "cleaned":
                advance(1)

        yield told


def _tell(stage: Stage, load: Load, moves: list[Move]) -> None:
    pauses = [move.pause_ms for move in moves if move.pause_ms is not None]
    stage.screen.say(
        f"{len(moves)} buckets moved; the writers of a bucket waited {max(pauses):,.0f} ms at most"
        f" while it changed hands, {median(pauses):,.0f} ms as a rule"
    )
    stage.screen.say(
        f"meanwhile {load.meanwhile:,} baskets were stored, in {milliseconds(median(load.seconds))}"
        f" as a rule and {milliseconds(max(load.seconds))} at most; {load.repeated} times somebody"
        " came with an old map, and began again"
    )
    stage.screen.say(
        f"{load.counted} times all shards were asked how many baskets there are: never one too few,"
        " never one twice"
    )
    stage.screen.say(
        f"{load.found} times a household was found by its loyalty number, and a basket by a product"
        " in it, wherever their rows and entries were just then"
    )


def _count(cluster: ShardCluster) -> int:
    with cluster.session(scatter=True) as session:
        return session.scalars(select(func.count()).select_from(BasketRow)).one()


def _buckets_on(cluster: ShardCluster, shard: str) -> int:
    return len(cluster.router.map_of(HOUSEHOLDS).buckets_on(shard))


def _baskets_on(cluster: ShardCluster) -> dict[str, int]:
    """Return how many baskets lie in the buckets of each shard that has some."""
    return {shard.shard: _baskets(shard) for shard in cluster.stats() if shard.buckets}


def _baskets(shard: ShardStats) -> int:
    return sum(table.rows for table in shard.tables if table.table == BasketRow.__tablename__)
