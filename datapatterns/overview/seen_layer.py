"""The part of a layer that tells how all that it declares stands, and proves it."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

from datapatterns.cache_aside import Cache
from datapatterns.overview.gathering import Declared, gather
from datapatterns.overview.proof import Proof
from datapatterns.overview.proving import Claim, claims, prove
from datapatterns.overview.standing import LATE_SECONDS, Standing
from datapatterns.sharding import ShardCluster


class SeenLayer:
    """What a `DataLayer` can tell of all that it declares."""

    @property
    @abstractmethod
    def caches(self) -> Mapping[str, Cache]:
        """Its caches by name."""

    @abstractmethod
    def _overview(self, clusters: Sequence[ShardCluster]) -> AbstractContextManager[Declared]: ...

    def status(
        self, *, late_seconds: float = LATE_SECONDS, clusters: Sequence[ShardCluster] = ()
    ) -> list[Standing]:
        """Return how everything that is declared stands: how stale it is, what is in the way.

        A server that is away is one of the answers; all others are asked nevertheless.

        Args:
            late_seconds: After how long what is behind is wrong, unless its declaration says.
            clusters: Shards to ask besides those that `cluster` has returned and somebody keeps.
        """
        with self._overview(clusters) as declared:
            return gather(declared, late_seconds=late_seconds)

    def verify(
        self,
        *,
        sample: float | None = None,
        wanted: Callable[[Claim | Proof], bool] = lambda _: True,
        clusters: Sequence[ShardCluster] = (),
    ) -> Iterator[Proof]:
        """Compare all that is derived with what it is derived from, and yield each as it is known.

        Views with their queries, read models with the log, index tables with their tables, cached
        entries with the database, sealed events with their seals, copies of broadcast tables with
        each other; rows of shards are looked for where they should not be. All goes on meanwhile.

        Args:
            sample: Only this share of the rows of views and read models, such as 0.01, or as an
                integer about how many; all of them unless given.
            wanted: Which to compare, such as those that an earlier run has not come to.
            clusters: Shards to look at besides those that `cluster` has returned.

        Raises:
            ValueError: ``sample`` is not what it should be.
        """
        with self._overview(clusters) as declared:
            found = claims(declared, self.caches, sample=sample)
            yield from prove(each for each in found if wanted(each))
