"""Hear from Redis which keys change, so that values may be kept in this process.

One connection for each process and server, in a thread of its own: what several event loops and
threads keep hears from the same one. The server sends names of keys that begin with what the tiers
care for (``CLIENT TRACKING`` in broadcasting mode over RESP3), whoever changes them and however.
"""

import logging
import os
import select
import socket
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from threading import Lock, Thread, current_thread
from time import monotonic
from typing import Any, TypeAlias
from weakref import WeakSet, WeakValueDictionary

from redis.exceptions import ConnectionError as RedisConnectionError

from datapatterns.cache_aside.link import WHO_ARE_YOU, identity_in
from datapatterns.cache_aside.links import Links
from datapatterns.cache_aside.local_tier import LocalTier
from datapatterns.cache_aside.redis_commands import name_in
from datapatterns.cache_aside.standing import Standing

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 0.5
"""How often the server is asked for a sign of life; after two without one it is not trusted."""
_RETRY_SECONDS_MAX = 10.0

PushConnection: TypeAlias = Any
"""A connection of redis-py, whose methods have no types."""
Opener: TypeAlias = Callable[[], PushConnection]


class TrackedTier:
    """Lets a tier hear from the server as long as it is in use; a doorkeeper of the gate.

    Args:
        tier: What is kept.
        links: To the server that tells.
    """

    def __init__(self, tier: LocalTier, links: Links) -> None:
        self._tier = tier
        self._tracker = tracker_for(links)

    def opened(self, standing: Standing, until: float) -> None:
        """Serve from the tier, if it hears; else let it hear."""
        self._tier.opened(standing, until)
        if not self._tier.hears:
            self._tracker.join(self._tier)

    def closed(self) -> None:
        """Serve nothing from the tier."""
        self._tier.closed()

    def close(self) -> None:
        """Let the tier hear no more, and end the connection if none does."""
        self._tracker.leave(self._tier)


class Tracker:
    """Lets tiers hear from one server.

    Args:
        connect: Opens a connection to it.
    """

    def __init__(self, connect: Opener) -> None:
        self._connect = connect
        self._lock = Lock()
        self._tiers: WeakSet[LocalTier] = WeakSet()
        self._listener: _Listener | None = None

    def join(self, tier: LocalTier) -> None:
        """Let ``tier`` hear, soon."""
        with self._lock:
            self._tiers.add(tier)
            if self._listener is None or self._listener.has_ended:
                self._listener = _Listener(self._connect, self._tiers, self._lock)
                self._listener.start()
            self._listener.ring()

    def leave(self, tier: LocalTier) -> None:
        """Let ``tier`` hear no more; returns when a connection that nobody needs is closed."""
        listener = None
        with self._lock:
            self._tiers.discard(tier)
            if not self._tiers:
                listener, self._listener = self._listener, None
                if listener is not None:
                    listener.has_ended = True
        tier.lost()
        tier.tell_hits()
        if listener is not None:
            listener.end()

    def leave_to_parent(self) -> None:
        """Begin anew in a forked process: the connection and its thread are the parent's."""
        listener, self._listener = self._listener, None
        self._lock = Lock()
        self._tiers = WeakSet()
        if listener is not None:
            listener.leave_to_parent()


class _Listener:
    """One thread that listens until nobody needs it.

    Args:
        connect: Opens a connection.
        tiers: Who wants to hear.
        lock: Guards ``tiers``, and ``has_ended``.
    """

    def __init__(self, connect: Opener, tiers: WeakSet[LocalTier], lock: Lock) -> None:
        self.has_ended = False
        self._connect = connect
        self._tiers = tiers
        self._lock = lock
        self._connection: PushConnection | None = None
        self._has_heard = False
        self._bell, self._ear = socket.socketpair()
        self._bell.setblocking(False)
        self._ear.setblocking(False)
        self._thread = Thread(target=self._run, name="datapatterns-cache-tracking", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def ring(self) -> None:
        """Let it look who wants to hear."""
        with suppress(OSError):  # it has been rung often enough, or has ended
            self._bell.send(b"!")

    def end(self) -> None:
        """Wait until it has ended."""
        self.ring()
        if self._thread is not current_thread():
            self._thread.join()

    def leave_to_parent(self) -> None:
        """Close this process's copies of what the parent listens to."""
        if self._connection is not None:
            self._connection.disconnect()
        self._bell.close()
        self._ear.close()

    def _run(self) -> None:
        retry_seconds, is_known = HEARTBEAT_SECONDS, False
        while self._is_wanted():
            try:
                self._listen()
            except Exception as error:  # noqa: BLE001 -- whatever it is: it is tried again
                # Nothing is lost but speed: hits are asked for.
                if not is_known:
                    logger.warning(
                        "Redis tells of no changes; nothing is kept in this process meanwhile",
                        extra={"error": type(error).__name__},
                    )
                retry_seconds = HEARTBEAT_SECONDS if self._has_heard else retry_seconds * 2
                is_known = not self._has_heard
                self._wait(min(retry_seconds, _RETRY_SECONDS_MAX))
        self._bell.close()
        self._ear.close()

    def _is_wanted(self) -> bool:
        with self._lock:
            self.has_ended = self.has_ended or not self._tiers
            return not self.has_ended

    def _wait(self, seconds: float, *others: socket.socket) -> None:
        poller = select.poll()
        for each in (self._ear, *others):
            poller.register(each, select.POLLIN)
        poller.poll(max(0.0, seconds) * 1000)
        with suppress(BlockingIOError):
            while self._ear.recv(64):
                pass

    def _listen(self) -> None:
        self._has_heard = False
        prefixes = self._wanted()
        if not prefixes:
            self._wait(HEARTBEAT_SECONDS)
            return
        self._connection = connection = self._connect()
        try:
            server = _server_of(connection)
            _track(connection, prefixes)
            self._hear(connection, server, prefixes)
        finally:
            connection.disconnect()
            self._connection = None
            for tier in self._current():
                tier.lost()

    def _hear(self, connection: PushConnection, server: str, prefixes: frozenset[str]) -> None:
        asked_at: deque[float] = deque()
        ask_at = monotonic()
        line = connection._get_socket()  # noqa: SLF001 -- to be woken by the bell, too
        while self._is_wanted() and self._wanted() <= prefixes:
            if monotonic() >= ask_at:
                ask_at = monotonic() + HEARTBEAT_SECONDS
                asked_at.append(monotonic())
                connection.send_command("PING", check_health=False)
            self._wait(ask_at - monotonic(), line)
            while connection.can_read(0):
                reply = connection.read_response(disable_decoding=True, push_request=True)
                if isinstance(reply, list):
                    self._pushed(reply)
                else:
                    # The server has sent, and we have read, all that changed before it was asked.
                    self._sign_of_life(server, prefixes, asked_at.popleft())
            if asked_at and monotonic() - asked_at[0] > 2 * HEARTBEAT_SECONDS:
                raise RedisConnectionError("silent for two heartbeats")

    def _sign_of_life(self, server: str, prefixes: frozenset[str], asked_at: float) -> None:
        self._has_heard = True
        with self._lock:
            tiers = [] if self.has_ended else [*self._tiers]
            for tier in tiers:
                tier.tracked(server, prefixes, asked_at + 2 * HEARTBEAT_SECONDS)
        for tier in tiers:
            tier.tell_hits()
            if tier.standing is not None and tier.standing.server != server:
                raise RedisConnectionError("another server answers")

    def _pushed(self, message: Sequence[object]) -> None:
        match message:
            case [b"invalidate", None]:  # the server has been flushed
                for tier in self._current():
                    tier.clear()
            case [b"invalidate", [*keys]]:
                names = [
                    name_in(key.decode(errors="replace")) for key in keys if isinstance(key, bytes)
                ]
                entries = [entry for entry, _ in names if entry]
                tags = [tag for _, tag in names if tag]
                for tier in self._current():
                    tier.drop(entries, tags)
            case _:
                pass

    def _current(self) -> list[LocalTier]:
        with self._lock:
            return [*self._tiers]

    def _wanted(self) -> frozenset[str]:
        return frozenset().union(*(tier.prefixes for tier in self._current()))


def _server_of(connection: PushConnection) -> str:
    replies = []
    for command in WHO_ARE_YOU:
        connection.send_command(*command, check_health=False)
        replies.append(connection.read_response(disable_decoding=True))
    return identity_in(replies)


def _track(connection: PushConnection, prefixes: frozenset[str]) -> None:
    parser = connection._get_parser()  # noqa: SLF001 -- there is no other way
    parser.set_invalidation_push_handler(lambda message: message)
    named = [part for prefix in sorted(prefixes) for part in ("PREFIX", prefix)]
    connection.send_command("CLIENT", "TRACKING", "ON", "BCAST", *named, check_health=False)
    connection.read_response(push_request=True)


_trackers: WeakValueDictionary[Hashable, Tracker] = WeakValueDictionary()
_lock = Lock()


def tracker_for(links: Links) -> Tracker:
    """Return the one tracker for the server that ``links`` lead to."""
    with _lock:
        tracker = _trackers.get(links.where)
        if tracker is None:
            tracker = _trackers[links.where] = Tracker(links.opener_for_pushes())
        return tracker


def _leave_all_to_parent() -> None:
    global _lock  # noqa: PLW0603 -- another thread may have held it
    _lock = Lock()
    for tracker in [*_trackers.values()]:
        tracker.leave_to_parent()


os.register_at_fork(after_in_child=_leave_all_to_parent)
