"""One Valkey server; it speaks Redis' protocol."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from datapatterns.embedded.accounts import ServerAccount
from datapatterns.embedded.configuration import Setting, valkey_configuration
from datapatterns.embedded.processes import ServerProcess
from datapatterns.embedded.starting import wait_until_it_answers
from datapatterns.failpoints import failpoint


@dataclass(frozen=True, slots=True)
class ValkeyPlace:
    """Where a server lives.

    Attributes:
        folder: Its own folder: the data, the log.
        socket: Its socket.
        tcp_port: Its port on 127.0.0.1, None if it listens on the socket alone.
    """

    folder: Path
    socket: Path
    tcp_port: int | None


class ValkeyServer:
    """A real Valkey server that can be stopped, killed, paused, and started again.

    Made by ``EmbeddedServers.valkey``; it keeps its data and its address until that closes.
    """

    def __init__(
        self,
        place: ValkeyPlace,
        settings: Mapping[str, Setting],
        *,
        program: Path,
        account: ServerAccount,
    ) -> None:
        self._place = place
        self._settings = settings
        self._account = account
        self._password = secrets.token_urlsafe(16) if place.tcp_port else ""
        self._data = place.folder / "data"
        self._configuration = place.folder / "valkey.conf"
        self._process = ServerProcess(
            [program, self._configuration], folder=place.folder, account=account
        )

    @property
    def url(self) -> str:
        """Its address, for ``redis.Redis.from_url``; over TCP with a password."""
        if self._password:
            return f"redis://:{self._password}@127.0.0.1:{self._place.tcp_port}/0"
        return f"unix://{quote(str(self._place.socket))}?db=0"

    @property
    def is_running(self) -> bool:
        """Whether its process exists, be it paused."""
        return self._process.pid is not None

    @property
    def pid(self) -> int | None:
        """The process id of the server, None unless it runs."""
        return self._process.pid

    def start(self) -> None:
        """Start it and return when it answers; nothing happens if it runs.

        Raises:
            EmbeddedStartError: It ended at once; the message has the end of its log.
            EmbeddedTimeoutError: It doesn't answer in time.
        """
        if self.is_running:
            return
        self._configure()
        self._process.start()
        failpoint("embedded.process-started")
        wait_until_it_answers("Valkey", self._process, self._answers)

    def stop(self) -> None:
        """Stop it in good order."""
        self._process.stop()

    def kill(self) -> None:
        """Stop it as a crash does (SIGKILL)."""
        self._process.kill()

    def pause(self) -> None:
        """Freeze it: connections stay open, nothing answers."""
        self._process.pause()

    def resume(self) -> None:
        """Go on after ``pause``."""
        self._process.resume()

    def _configure(self) -> None:
        place = self._place
        fixed: dict[str, Setting] = {
            "bind": "127.0.0.1",
            "port": place.tcp_port or 0,
            "unixsocket": str(place.socket),
            "unixsocketperm": "700",
            "requirepass": self._password,
            "dir": str(self._data),
            "daemonize": False,
            "logfile": "",
        }
        self._account.make_folder(self._data)
        self._account.write_file(
            self._configuration, valkey_configuration({**self._settings, **fixed})
        )

    def _answers(self) -> bool:
        # While it loads its data it answers with an error that is a ConnectionError, too.
        with Redis.from_url(self.url, socket_timeout=5) as client:
            try:
                return bool(client.ping())
            except (RedisConnectionError, RedisTimeoutError):
                return False
