"""The mutex that keeps one loader of a key at work, and what it loads out once it is too old.

It is a lease: it ends by itself, whoever deletes the key takes it away, and what was loaded under
it is stored only while it stands.
"""

import threading
from collections.abc import Sequence
from typing import Final, NamedTuple
from uuid import uuid4

from dogpile.cache.api import CacheMutex

from datapatterns.cache_aside.links import Links
from datapatterns.cache_aside.lua_scripts import RELEASE
from datapatterns.cache_aside.steps import CacheSilence
from datapatterns.clock import Clock

_PAUSE_SECONDS_FIRST: Final = 0.005
_PAUSE_SECONDS_MAX: Final = 0.05


class Claim(NamedTuple):
    """Under which condition a value may be stored.

    Attributes:
        token: The lease that has to stand; None if the value must not be stored at all, empty if
            it may be in any case.
        keeps_lease: Whether the lease goes on; else it ends, and with it the load under it.
    """

    token: str | None
    keeps_lease: bool


class _Holding(NamedTuple):
    owner: object
    token: str | None
    until: float


class LeaseMutex(CacheMutex):
    """Locks one key among the threads of all processes; share one among the threads of this.

    Args:
        links: The way to Redis.
        key: Where the lease is.
        lease_seconds: How long it lasts, whatever becomes of its holder.
        wait_seconds: How long `acquire` waits at most; None as long as others hold it.
        clock: The time.
    """

    def __init__(
        self,
        links: Links,
        key: str,
        *,
        lease_seconds: float,
        wait_seconds: float | None,
        clock: Clock,
    ) -> None:
        self._links = links
        self._key = key
        self._lease_seconds = lease_seconds
        self._wait_seconds = wait_seconds
        self._clock = clock
        # One thread asks Redis for all that wait.
        self._turn = threading.Lock()
        self._known = threading.Lock()
        self._holdings: list[_Holding] = []

    def acquire(self, wait: bool = True) -> bool:  # noqa: FBT001, FBT002 -- as dogpile calls it
        """Take the lease; return whether it is ours.

        While Redis is silent, threads of this process exclude each other. What is loaded then, or
        after waiting in vain, is not stored.
        """
        if not wait:
            return self._try()
        limit = -1 if self._wait_seconds is None else self._wait_seconds
        give_up_at = self._clock.monotonic() + limit if limit >= 0 else None
        if self._turn.acquire(timeout=limit):
            try:
                if self._poll(give_up_at):
                    return True
            finally:
                self._turn.release()
        # Whoever has waited in vain loads all the same, and `release` follows.
        self._hold(None)
        return False

    def release(self) -> None:
        """Give the lease back, unless it is another's by now; threads may release for others."""
        with self._known:
            holding = self._dropped()
        if holding is None or holding.token is None:
            return
        try:
            self._links.call(RELEASE.by_hash([self._key], [holding.token]))
        except CacheSilence:
            return  # it ends by itself

    def locked(self) -> bool:
        """Return whether somebody holds the lease."""
        try:
            return self._links.call(("GET", self._key)) is not None
        except CacheSilence:
            return self._is_held_here()

    def claim(self) -> Claim:
        """Return on which condition the calling thread may store a value under the key now.

        Of a thread that holds no lease nobody knows whether it loads for one that does, or brings
        a newer value: either way what is stored has to be the last of its kind.
        """
        me = _me()
        with self._known:
            own = [each for each in self._holdings if each.owner is me]
            if own:
                return Claim(own[-1].token, keeps_lease=True)
            match self._holdings:
                case []:
                    return Claim("", keeps_lease=False)
                case [only]:
                    return Claim(only.token, keeps_lease=False)
                case _:
                    return Claim(None, keeps_lease=False)

    def _poll(self, give_up_at: float | None) -> bool:
        pause = _PAUSE_SECONDS_FIRST
        while not self._try():
            if give_up_at is not None:
                pause = min(pause, give_up_at - self._clock.monotonic())
                if pause <= 0:
                    return False
            self._clock.sleep(pause)
            pause = min(2 * pause, _PAUSE_SECONDS_MAX)
        return True

    def _try(self) -> bool:
        token = uuid4().hex
        lease_ms = max(1, round(self._lease_seconds * 1000))
        try:
            # A command that is repeated after a lost reply finds its own token.
            held = self._links.call(("SET", self._key, token, "PX", lease_ms, "NX", "GET"))
        except CacheSilence:
            return not self._is_held_here() and self._hold(None)
        return held in {None, token.encode()} and self._hold(token)

    def _hold(self, token: str | None) -> bool:
        until = self._clock.monotonic() + self._lease_seconds
        with self._known:
            self._holdings.append(_Holding(_me(), token, until))
        return True

    def _is_held_here(self) -> bool:
        now = self._clock.monotonic()
        with self._known:
            return any(each.until > now for each in self._holdings)

    def _dropped(self) -> _Holding | None:
        me = _me()
        places = range(len(self._holdings))
        own = [place for place in places if self._holdings[place].owner is me]
        # Whoever loads in the background gives back what another thread has taken.
        place = own[-1] if own else next(iter(places), None)
        return None if place is None else self._holdings.pop(place)


# KEYS value, lease per entry. ARGV life of the values in ms, 0 for no end, then per entry the lease
# that has to stand (empty for none), whether it goes on, and the value.
_STORE: Final = """
local out, j = {}, 2
for i = 1, #KEYS, 2 do
  if ARGV[j] == '' or redis.call('GET', KEYS[i + 1]) == ARGV[j] then
    if ARGV[1] == '0' then redis.call('SET', KEYS[i], ARGV[j + 2])
    else redis.call('SET', KEYS[i], ARGV[j + 2], 'PX', ARGV[1]) end
    if ARGV[j + 1] == '0' then redis.call('DEL', KEYS[i + 1]) end
    out[#out + 1] = 1
  else
    out[#out + 1] = 0
  end
  j = j + 3
end
return out
"""


def storing(
    stored: Sequence[tuple[str, str, Claim, bytes]], *, life_ms: int
) -> tuple[str | bytes | int, ...]:
    """Return the command that stores values, each if its claim is good.

    Args:
        stored: For each the keys of the value and of the lease, the claim and the value.
        life_ms: How long to keep them; 0 for no end.
    """
    keys = [key for value_key, lease_key, _, _ in stored for key in (value_key, lease_key)]
    arguments = [
        part
        for _, _, claim, value in stored
        for part in (claim.token or "", int(claim.keeps_lease), value)
    ]
    return ("EVAL", _STORE, len(keys), *keys, life_ms, *arguments)


_threads = threading.local()


def _me() -> object:
    """Return what no other thread has, not even one that gets this one's number later."""
    me: object = getattr(_threads, "me", None)
    if me is None:
        me = _threads.me = object()
    return me
