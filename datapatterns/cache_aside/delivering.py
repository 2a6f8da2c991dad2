"""Tell Redis what transactions of this process make obsolete, after the COMMIT or before it."""

import logging
from collections.abc import Callable, Sequence

from sqlalchemy import Connection

from datapatterns.cache_aside.cluster_links import AnyLinks
from datapatterns.cache_aside.counting import Counters
from datapatterns.cache_aside.fencing import fence_before_commit
from datapatterns.cache_aside.gate import Gate
from datapatterns.cache_aside.invalidating import Invalidation
from datapatterns.cache_aside.local_tier import forget_in_process
from datapatterns.cache_aside.lua_scripts import Command
from datapatterns.cache_aside.redis_commands import (
    fences_around,
    invalidations_of,
    milliseconds,
    without_fences_around,
)
from datapatterns.cache_aside.standing import Standing
from datapatterns.cache_aside.steps import CacheSilence
from datapatterns.clock import Clock
from datapatterns.errors import CommitUnansweredError, SettingsError, UnfencedWriteError

logger = logging.getLogger(__name__)


class Delivery:
    """The way of one cache's invalidations to Redis.

    Args:
        links: The way to Redis.
        gate: Where hits come from.
        counters: What counts what was sent.
        detach: Called with entries and tags; loads under way must not be joined any more.
    """

    def __init__(
        self,
        links: AnyLinks,
        gate: Gate,
        counters: Counters,
        detach: Callable[[Sequence[str], Sequence[str]], object],
    ) -> None:
        self._links = links
        self._gate = gate
        self._counters = counters
        self._detach = detach

    def deliver(self, invalidation: Invalidation, *, takes_down: bool) -> None:
        """Forget, after a COMMIT.

        Args:
            invalidation: What to forget.
            takes_down: Whether the transaction's fences fall: they must stand while it may yet
                commit.
        """
        current = self._gate.last_standing
        prefixes = {invalidation.prefix, current and current.prefix} - {None}
        try:
            for prefix in prefixes:
                self._links.call_all(
                    invalidations_of(
                        invalidation.entries,
                        invalidation.tags,
                        prefix=str(prefix),
                        xid=invalidation.xid,
                        takes_down=takes_down,
                    )
                )
            self._counters.add("invalidated", invalidation.count)
        except (CacheSilence, SettingsError):
            # The write has committed; the relay will deliver. Until it has, this process serves
            # no hits: it must see its own writes.
            self._gate.close()
            self._counters.add("undelivered", invalidation.count)
        # Only now: a load that began before the delete must not be joined after it, and what was
        # read before it must not be kept here.
        self._detach(invalidation.entries, invalidation.tags)
        forget_in_process(invalidation.entries, invalidation.tags)


class Fences:
    """Puts fences up around what one cache's writers are about to commit.

    Args:
        name: The cache's name.
        seconds: How long a fence stands at most.
        links: The way to Redis.
        gate: Where hits come from.
        counters: What counts fences that fell too early.
        clock: The time.
    """

    def __init__(
        self,
        name: str,
        seconds: float,
        *,
        links: AnyLinks,
        gate: Gate,
        counters: Counters,
        clock: Clock,
    ) -> None:
        self.name = name
        self.seconds = seconds
        self.links = links
        self.gate = gate
        self.counters = counters
        self.clock = clock

    def around(self, conn: Connection, invalidation: Invalidation) -> "FenceOfWrite":
        """Return the fence for the COMMIT of ``conn``, around ``invalidation``, too.

        Raises:
            SettingsError: The transaction has two phases.
        """
        fence = fence_before_commit(conn, self, lambda: FenceOfWrite(self))
        fence.invalidations.append(invalidation)
        return fence


class FenceOfWrite:
    """A fence around what one transaction makes obsolete.

    Args:
        fences: Those of its cache.

    Attributes:
        invalidations: What it makes obsolete.
    """

    def __init__(self, fences: Fences) -> None:
        self.invalidations: list[Invalidation] = []
        self._fences = fences
        self._up_since: float | None = None
        self._where: Standing | None = None

    def put_up(self) -> None:
        """Forget what is there, and keep everybody from storing until the fence falls.

        Raises:
            UnfencedWriteError: Redis did not answer, or nobody can say that it is up to date.
        """
        fences = self._fences
        self._up_since = fences.clock.monotonic()
        try:
            self._where = fences.gate.standing()
            if self._where is None:
                raise UnfencedWriteError(fences.name)
            fences.links.call_all(
                self._commands(fences_around, life_ms=milliseconds(fences.seconds)),
                identity=self._where.server,
            )
        except (CacheSilence, CommitUnansweredError) as error:
            raise UnfencedWriteError(fences.name) from error
        for each in self.invalidations:
            forget_in_process(each.entries, each.tags)

    def take_down(self) -> None:
        """Let others store again; if Redis does not answer, the fence falls by itself."""
        try:
            self._fences.links.call_all(self._commands(without_fences_around))
        except CacheSilence:
            logger.info("a fence of cache %s stands until its time is up", self._fences.name)

    def check(self) -> None:
        """Say so if the fence has fallen before the COMMIT was answered."""
        fences = self._fences
        if self._up_since is None or fences.clock.monotonic() - self._up_since < fences.seconds:
            return
        self._up_since = None  # said once
        fences.counters.add("outlived")
        logger.warning(
            "a COMMIT took longer than fence_seconds of cache %s; for a moment others may have"
            " been served what it made obsolete",
            fences.name,
        )

    def _commands(self, make: Callable[..., list[Command]], **options: int) -> list[Command]:
        # All are of one transaction.
        entries = {entry for each in self.invalidations for entry in each.entries}
        tags = {tag for each in self.invalidations for tag in each.tags}
        known = {each.prefix for each in self.invalidations}
        if self._where is not None:
            known.add(self._where.prefix)
        xid = self.invalidations[0].xid
        return [
            command
            for prefix in known - {None}
            for command in make(entries, tags, prefix=str(prefix), xid=xid, **options)
        ]
