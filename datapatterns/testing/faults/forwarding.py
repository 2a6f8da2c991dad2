"""One connection through a proxy: messages are passed on, or not."""

import asyncio
import logging
import socket
import struct
from collections.abc import AsyncIterator, Iterator

from datapatterns.testing.faults.dialogues import Dialogue, Reply, Request
from datapatterns.testing.faults.traps import Moment, Trap

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 65_536
_CLOSE_SECONDS = 1.0
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 seconds
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Conditions:
    """What the network is like; all connections of a proxy share it.

    Attributes:
        latency_seconds: How long each piece of data takes, on each way.
        requests_pass: Whether anything goes from clients to the server.
        replies_pass: Whether anything goes from the server to clients.
        traps: What is waited for.
    """

    def __init__(self) -> None:
        self.latency_seconds = 0.0
        self.requests_pass = asyncio.Event()
        self.replies_pass = asyncio.Event()
        self.traps: list[Trap] = []

    def let_pass(self, *, requests: bool, replies: bool) -> None:
        """Let data pass on each way, or hold them back."""
        for flag, passes in [(self.requests_pass, requests), (self.replies_pass, replies)]:
            flag.set() if passes else flag.clear()

    def spring_for(self, request: Request) -> Trap | None:
        """Return the trap that was set for this, and take it from the others."""
        return self._take(next((trap for trap in self.traps if trap.is_set_for(request)), None))

    def spring_for_bytes(self) -> Trap | None:
        """Return the trap that counts bytes, and take it from the others."""
        counting = (trap for trap in self.traps if trap.moment is Moment.BYTES)
        return self._take(next(counting, None))

    def _take(self, trap: Trap | None) -> Trap | None:
        if trap is not None:
            self.traps.remove(trap)
        return trap


class _CutError(Exception):
    """A trap fires: this connection ends here."""


class Connection:
    """One connection of a client, and the one to the server that belongs to it."""

    def __init__(
        self, client: Streams, server: Streams, *, dialogue: Dialogue, conditions: Conditions
    ) -> None:
        self._from_client, self._to_client = client
        self._from_server, self._to_server = server
        self._dialogue = dialogue
        self._conditions = conditions
        self._trap: Trap | None = None
        self._awaited = 0  # the request whose reply shall not arrive
        self._is_withholding = False
        self._counting: Trap | None = None

    async def run(self) -> None:
        """Pass messages on until one side leaves, or a trap fires; then leave the other side."""
        ways = [
            asyncio.create_task(self._pass_requests()),
            asyncio.create_task(self._pass_replies()),
        ]
        is_cut = True
        try:
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            is_cut = any(not _has_left(way.exception()) for way in done)
        finally:
            for way in ways:
                way.cancel()
            try:
                outcomes = await asyncio.gather(*ways, return_exceptions=True)
            finally:
                self._leave(is_cut=is_cut)
            for outcome in outcomes:
                if not _has_left(outcome) and not isinstance(outcome, _CutError):
                    logger.error("the proxy hung up", exc_info=outcome)
            await close(self._to_client)
            await close(self._to_server)

    def _leave(self, *, is_cut: bool) -> None:
        # Both sides, before anything is waited for: all may be cut while this one is.
        self._settle_trap()
        if is_cut:
            reset(self._to_client)
        self._to_client.close()
        self._to_server.close()  # reads all that was sent before it learns that the client is gone

    async def _pass_requests(self) -> None:
        conditions = self._conditions
        async for data in _chunks(self._from_client, conditions, conditions.requests_pass):
            for request in self._dialogue.requests(data):
                self._pass_request(request)
            await self._to_server.drain()

    async def _pass_replies(self) -> None:
        conditions = self._conditions
        async for data in _chunks(self._from_server, conditions, conditions.replies_pass):
            # In one piece: a result of many rows is as many messages.
            self._pass_reply(b"".join(self._arriving(data)))
            await self._to_client.drain()

    def _pass_request(self, request: Request) -> None:
        self._to_client.write(request.answer)
        trap = None if self._trap else self._conditions.spring_for(request)
        if trap is not None and trap.moment is Moment.REQUEST:
            trap.fire()
            raise _CutError
        if trap is not None and request.number is not None:
            self._trap, self._awaited = trap, request.number
        self._to_server.write(request.data)

    def _arriving(self, data: bytes) -> Iterator[bytes]:
        return (reply.data for reply in self._dialogue.replies(data) if self._may_arrive(reply))

    def _may_arrive(self, reply: Reply) -> bool:
        if self._trap is None:
            return True
        if reply.completes == self._awaited:
            self._is_withholding = True
        if reply.ends is not None and reply.ends >= self._awaited:
            has_answered = self._is_withholding
            self._settle_trap()
            if has_answered:
                raise _CutError
        return not self._is_withholding

    def _pass_reply(self, data: bytes) -> None:
        if not data:
            return
        self._counting = self._counting or self._conditions.spring_for_bytes()
        if (counting := self._counting) is None:
            self._to_client.write(data)
            return
        part = data[: counting.bytes_left]
        counting.bytes_left -= len(part)
        self._to_client.write(part)
        if not counting.bytes_left:
            counting.fire()
            self._to_client.close()  # not reset, which may overtake these bytes

    def _settle_trap(self) -> None:
        trap, self._trap = self._trap, None
        if trap is None:
            return
        if self._is_withholding:
            trap.fire()
        else:  # an earlier statement of the batch had failed, or the connection ended before
            self._conditions.traps.append(trap)


def _has_left(outcome: BaseException | None) -> bool:
    """Whether a way ended because one of the sides is gone, or because the other way ended."""
    return outcome is None or isinstance(outcome, ConnectionError | asyncio.CancelledError)


async def _chunks(
    reader: asyncio.StreamReader, conditions: Conditions, may_pass: asyncio.Event
) -> AsyncIterator[bytes]:
    """Yield what arrives once it may go on; that the sender has left has to wait, too."""
    data = b"-"
    while data:
        try:
            data = await reader.read(_CHUNK_BYTES)
        except ConnectionError:
            data = b""
        if conditions.latency_seconds:
            await asyncio.sleep(conditions.latency_seconds)
        await may_pass.wait()
        if data:
            yield data


def reset(writer: asyncio.StreamWriter) -> None:
    """Break a connection at once; the other side sees a reset."""
    connection = writer.get_extra_info("socket")
    if not writer.transport.is_closing():
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


async def close(writer: asyncio.StreamWriter) -> None:
    """Send what is left, and leave; what a stopped reader doesn't take is given up."""
    writer.close()
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await writer.wait_closed()
    except OSError:  # a time-out, too
        writer.transport.abort()
