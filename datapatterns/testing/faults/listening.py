"""The listener of a proxy: it takes connections, or refuses them as a stopped server does."""

import asyncio
import socket

from datapatterns.testing.faults.addresses import PROXY_HOST, Upstream
from datapatterns.testing.faults.forwarding import Conditions, Connection, Streams, close, reset


class Listener:
    """All connections of one proxy; lives in the event loop of that."""

    def __init__(self, upstream: Upstream) -> None:
        self.conditions = Conditions()
        self.conditions.let_pass(requests=True, replies=True)
        self.open_connections = 0
        self._upstream = upstream
        self._serving: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        # Bound and never listening: it keeps the port while connections are refused.
        self._reserved = _bound_socket(0)
        self.port: int = self._reserved.getsockname()[1]

    async def listen(self) -> None:
        """Take connections; nothing happens if it does."""
        if self._server is None:
            self._server = await asyncio.start_server(self._take, sock=_bound_socket(self.port))

    async def refuse(self) -> None:
        """Refuse connections; those that are open stay."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def cut(self) -> int:
        """Break all connections; return how many there were, when they are gone."""
        serving = list(self._serving)
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        return len(serving)

    async def stop(self) -> None:
        """Break all connections, and give the port up."""
        await self.refuse()
        await self.cut()
        self._reserved.close()

    def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve((reader, writer)))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, client: Streams) -> None:
        try:
            await self.conditions.requests_pass.wait()
            server = await self._connect()
        except BaseException as error:
            reset(client[1])
            await close(client[1])
            if isinstance(error, OSError):
                return  # the server is away, and so is this connection
            raise
        connection = Connection(
            client, server, dialogue=self._upstream.dialogue(), conditions=self.conditions
        )
        self.open_connections += 1
        try:
            await connection.run()
        finally:
            self.open_connections -= 1

    async def _connect(self) -> Streams:
        if self._upstream.socket is not None:
            return await asyncio.open_unix_connection(self._upstream.socket)
        return await asyncio.open_connection(self._upstream.host, self._upstream.port)


def _bound_socket(port: int) -> socket.socket:
    # Named, because asyncio looks at it before it switches Nagle's algorithm off (40 ms a trip).
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # Two sockets of one port: the one that reserves it, and the one that listens. On macOS that
    # takes the second option, too.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind((PROXY_HOST, port))
    return bound
