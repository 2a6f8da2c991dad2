"""The mark by which a relay vouches for a server: that it was told all that committed before."""

from typing import NamedTuple

from datapatterns.cache_aside.cluster_links import AnyLinks
from datapatterns.cache_aside.links import Place
from datapatterns.cache_aside.redis_commands import server_key
from datapatterns.cache_aside.standing import Standing
from datapatterns.cache_aside.steps import CacheSilence


class Mark(NamedTuple):
    """What a mark says, by the clock of the server.

    Attributes:
        began_ms: When the round began that has set it, or a moment before.
        now_ms: When it was read.
    """

    began_ms: int
    now_ms: int

    @property
    def age_ms(self) -> int:
        """How long ago that round began at most."""
        return self.now_ms - self.began_ms


def read_mark(links: AnyLinks, standing: Standing) -> Mark | None:
    """Return the mark of ``standing``; None if nobody vouches for it.

    In a cluster that of the node which is marked last: all others are marked by that round, too.

    Raises:
        CacheSilence: Redis did not answer, or another server does.
    """
    mark = None
    for place in links.places(standing.server):
        mark = _mark_at(links, place, standing)
        if mark is None:
            return None
    return mark


def _mark_at(links: AnyLinks, place: Place, standing: Standing) -> Mark | None:
    key = server_key(standing.prefix, place.tag)
    # The time comes before what is left, so that no mark looks younger than it is.
    mark, now, left_ms = links.call_at(place, [("GET", key), ("TIME",), ("PTTL", key)])
    life_ms = life_in(mark, standing.server)
    if life_ms is None or not isinstance(left_ms, int) or left_ms <= 0:
        return None
    now_ms = _ms_of(now)
    return Mark(now_ms + left_ms - life_ms, now_ms)


def server_ms(links: AnyLinks, place: Place) -> int:
    """Return the time by the clock of a server, in milliseconds since 1970.

    Raises:
        CacheSilence: It did not answer, or another does.
    """
    [reply] = links.call_at(place, [("TIME",)])
    return _ms_of(reply)


def life_in(mark: object, server: str) -> int | None:
    """Return for how many milliseconds ``mark`` vouches for ``server``, None if it does not."""
    beginning = f"{server}|".encode()
    if not isinstance(mark, bytes) or not mark.startswith(beginning):
        return None
    life, _, _ = mark.removeprefix(beginning).partition(b"|")
    return int(life) if life.isdigit() else None


def _ms_of(reply: object) -> int:
    match reply:
        case [bytes(seconds), bytes(microseconds)]:
            return int(seconds) * 1000 + int(microseconds) // 1000
        case _:
            raise CacheSilence("an unexpected reply to TIME")
