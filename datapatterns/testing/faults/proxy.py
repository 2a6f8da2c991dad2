"""A proxy before PostgreSQL or Redis that breaks the network on purpose."""

import asyncio
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from datapatterns.testing.faults.addresses import Address, through_proxy, upstream_of
from datapatterns.testing.faults.listening import Listener
from datapatterns.testing.faults.traps import Moment, Trap
from datapatterns.testing.waiting import wait_until

T = TypeVar("T")

_CONTROL_SECONDS = 30.0


class FaultProxy(Generic[Address]):
    """Stands between clients and one server, and does to their connections what networks do.

    It runs in a thread of its own, so it serves threads and asyncio alike, and each method
    returns when what it says is so. What passes is read, not changed: statements and commands
    are recognised by the protocol, in simple and prepared form. TLS is off on the client's side.

    What is held back is not lost: TCP would send it again, and so does this, after
    ``pass_through``.

    Args:
        address: The server: a SQLAlchemy URL or a string of one, a ``redis://`` or ``unix://``
            URL. Sockets are fine.

    Attributes:
        url: The address to give to the code under test, of the same kind as ``address``. A string
            holds the password that ``address`` holds.

    Raises:
        FaultRefusedError: The address leads nowhere that a proxy can stand before.
    """

    def __init__(self, address: Address) -> None:
        self._listener = Listener(upstream_of(address))
        self.url: Address = through_proxy(address, self._listener.port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="datapatterns-fault-proxy", daemon=True
        )
        self._thread.start()
        self._do(self._listener.listen())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def port(self) -> int:
        """Its port on 127.0.0.1."""
        return self._listener.port

    @property
    def connections(self) -> int:
        """How many connections are open, through to the server."""
        return self._listener.open_connections

    def wait_for_connections(self, count: int, *, timeout_seconds: float = 10.0) -> None:
        """Return when at least ``count`` connections are open.

        Raises:
            TimeoutError: There are fewer for ``timeout_seconds``.
        """
        wait_until(lambda: self.connections >= count, deadline_seconds=timeout_seconds)

    @property
    def latency_seconds(self) -> float:
        """How long each piece of data takes, on each way; may be set at any time.

        Raises:
            ValueError: Set to less than nothing.
        """
        return self._listener.conditions.latency_seconds

    @latency_seconds.setter
    def latency_seconds(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError(f"nothing arrives {-seconds} s before it is sent")
        self._listener.conditions.latency_seconds = seconds

    def cut(self) -> int:
        """Break all connections at once; return how many there were. New ones are served."""
        return self._do(self._listener.cut())

    def blackhole(self) -> None:
        """Let nothing pass in either direction, not even that a side has hung up."""
        self._do(self._let_pass(requests=False, replies=False))

    def drop_replies(self) -> None:
        """Let requests reach the server, and no reply come back."""
        self._do(self._let_pass(requests=True, replies=False))

    def refuse(self) -> None:
        """Refuse new connections as a stopped server does; those that are open stay."""
        self._do(self._listener.refuse())

    def pass_through(self) -> None:
        """End ``blackhole``, ``drop_replies`` and ``refuse``: what was held back arrives now."""
        self._do(self._let_pass(requests=True, replies=True))
        self._do(self._listener.listen())

    def cut_next_reply_to(self, request: str) -> Trap:
        """Break the next connection that makes this request, once the server has answered it.

        So it has been carried out (or refused), and the client cannot know.

        Args:
            request: How the statement or command begins, such as ``COMMIT``, ``INSERT INTO note``
                or ``EVALSHA``. Statements after a semicolon count, ``END`` counts as ``COMMIT``,
                case doesn't matter. The rest of the same batch is carried out, too.
        """
        return self._set(Trap(Moment.REPLY, request))

    def cut_before_request(self, request: str) -> Trap:
        """Break the next connection that makes this request, before the server gets it.

        To the client this looks the same as ``cut_next_reply_to``.

        Args:
            request: How the statement or command begins, as above.
        """
        return self._set(Trap(Moment.REQUEST, request))

    def cut_after_bytes(self, count: int) -> Trap:
        """Break the next connection that gets a reply when ``count`` more bytes have arrived.

        Raises:
            ValueError: ``count`` is negative.
        """
        if count < 0:
            raise ValueError(f"a reply cannot be cut after {count} bytes")
        return self._set(Trap(Moment.BYTES, f"a reply of {count} bytes", bytes_left=count))

    def close(self) -> None:
        """Break all connections and stop listening. Closing twice is harmless."""
        if self._loop.is_closed():
            return
        self._do(self._listener.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _set(self, trap: Trap) -> Trap:
        return self._do(self._add(trap))

    async def _add(self, trap: Trap) -> Trap:
        self._listener.conditions.traps.append(trap)
        return trap

    async def _let_pass(self, *, requests: bool, replies: bool) -> None:
        self._listener.conditions.let_pass(requests=requests, replies=replies)

    def _do(self, step: Coroutine[Any, Any, T]) -> T:
        if self._loop.is_closed():
            step.close()
            raise RuntimeError("this proxy is closed; make a new one")
        return asyncio.run_coroutine_threadsafe(step, self._loop).result(_CONTROL_SECONDS)


class FaultProxyFactory(Protocol):
    """Makes proxies, and closes them at the end of a test: ``datapatterns_fault_proxy``."""

    def __call__(self, address: Address) -> FaultProxy[Address]:
        """Return a new proxy before the server with this address."""
        ...
