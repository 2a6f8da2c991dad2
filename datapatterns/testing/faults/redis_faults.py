"""What happens to Redis and Valkey servers, brought about on purpose."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from datapatterns.embedded import ValkeyServer
from datapatterns.errors import FaultRefusedError
from datapatterns.testing.faults.data_folders import clear_folder, copy_into

_CLIENT_SECONDS = 30.0
_PAUSE_MILLISECONDS = 30_000


class RedisDump:
    """What a Redis server held at some moment; made by ``RedisFaults.save_dump``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def folder(self) -> Path:
        """Where the files are, until the ``RedisFaults`` that made it closes."""
        return self._folder


class RedisFaults:
    """Breaks connections, memory and the server; puts right what is still stopped at the end.

    What reaches further than one database needs an embedded server, but for pauses.

    Args:
        server: An embedded server, or the URL of a database.

    Attributes:
        url: The database that this is about.
    """

    def __init__(self, server: ValkeyServer | str) -> None:
        self._server = server if isinstance(server, ValkeyServer) else None
        self.url = server.url if isinstance(server, ValkeyServer) else server
        self._dumps: list[RedisDump] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the server go on if it was stopped; remove the dumps. Closing twice is harmless."""
        if self._server is not None:
            self._server.resume()
        while self._dumps:
            shutil.rmtree(self._dumps.pop().folder)

    def kill_clients(self, *, name: str | None = None) -> int:
        """Break the connections to this database, or those of one client name; return how many."""
        with self._client() as client:
            own = client.client_id()
            database = client.client_info()["db"]
            found = [
                listed["id"]
                for listed in client.client_list()
                if int(listed["id"]) != own
                and int(listed["db"]) == database
                and name in {None, listed["name"]}
            ]
            return sum(client.client_kill_filter(_id=number) for number in found)

    def pause_clients(self, seconds: float, *, writes_only: bool = False) -> None:
        """Let no command, or no write, be carried out for some time (``CLIENT PAUSE``).

        It reaches all databases of the server. Only a pause of writes can be ended earlier, by
        ``resume_clients``.
        """
        with self._client() as client:
            client.client_pause(round(1_000 * seconds), all=not writes_only)

    def resume_clients(self) -> None:
        """End a pause of writes."""
        with self._client() as client:
            client.client_unpause()

    def flush(self) -> None:
        """Forget everything in this database (``FLUSHDB``)."""
        with self._client() as client:
            client.flushdb()

    def evict(self, *keys: str | bytes) -> int:
        """Remove entries as eviction does, one by one and unannounced; return how many."""
        with self._client() as client:
            removed: int = client.unlink(*keys)
            return removed

    @contextmanager
    def limited_memory(self, *, headroom_bytes: int, policy: str = "allkeys-lru") -> Iterator[None]:
        """Give the server little more memory than it uses, within the block.

        Writes beyond that evict other entries, or fail with ``noeviction``.

        Args:
            headroom_bytes: How much more than now.
            policy: The ``maxmemory-policy``.

        Raises:
            FaultRefusedError: The server isn't embedded.
        """
        self._embedded("limiting its memory")
        with self._client() as client:
            before = client.config_get("maxmemory*")
            limit = client.info("memory")["used_memory"] + headroom_bytes
            client.config_set("maxmemory-policy", policy, "maxmemory", limit)
        try:
            yield
        finally:
            with self._client() as client:
                for name in ("maxmemory", "maxmemory-policy"):
                    client.config_set(name, before[name])

    def crash_and_restart(self, *, keep_data: bool) -> None:
        """Kill the server (SIGKILL), start it; return when it answers.

        Args:
            keep_data: Come back with all that it had acknowledged; otherwise with nothing.

        Raises:
            FaultRefusedError: The server isn't embedded.
        """
        server = self._embedded("crashing the server")
        folder = self._data_folder()
        if keep_data:
            self._keep_all()
        server.kill()
        if not keep_data:
            clear_folder(folder)
        server.start()

    def save_dump(self) -> RedisDump:
        """Keep what the server holds now, for ``restart_from_old_dump``.

        Raises:
            FaultRefusedError: The server isn't embedded.
        """
        server = self._embedded("saving a dump")
        folder = self._data_folder()
        dump = RedisDump(Path(tempfile.mkdtemp(prefix="datapatterns-dump-")))
        self._dumps.append(dump)
        before = self._setting("appendfsync")
        self._keep_all()
        server.pause()
        try:
            copy_into(dump.folder, folder)
        finally:
            server.resume()
            with self._client() as client:
                client.config_set("appendfsync", before)
                client.client_unpause()
        return dump

    def restart_from_old_dump(self, dump: RedisDump) -> None:
        """Kill the server, and start it with what it held when ``dump`` was made.

        So it comes back after a failover to a replica that lagged, or from a backup: entries that
        were deleted are there again.

        Raises:
            FaultRefusedError: The server isn't embedded.
        """
        server = self._embedded("coming back with old data")
        folder = self._data_folder()
        server.kill()
        clear_folder(folder)
        copy_into(folder, dump.folder)
        server.start()

    def pause(self) -> None:
        """Freeze the server (SIGSTOP) until ``resume``: connections stay open, nothing answers.

        Raises:
            FaultRefusedError: The server isn't embedded.
        """
        self._embedded("freezing the server").pause()

    def resume(self) -> None:
        """Let the server go on after ``pause``.

        Raises:
            FaultRefusedError: The server isn't embedded.
        """
        self._embedded("freezing the server").resume()

    def _embedded(self, fault: str) -> ValkeyServer:
        if self._server is None:
            raise FaultRefusedError(
                fault, "others may use it; give RedisFaults an embedded ValkeyServer"
            )
        return self._server

    def _client(self) -> Redis:
        # A connection for each call: those before it may be what was broken.
        return Redis.from_url(
            self.url,
            decode_responses=True,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=_CLIENT_SECONDS,
        )

    def _setting(self, name: str) -> str:
        with self._client() as client:
            settings: dict[str, Any] = client.config_get(name)
            return str(settings[name])

    def _data_folder(self) -> Path:
        return Path(self._setting("dir"))

    def _keep_all(self) -> None:
        """See to it that the server's files hold all that it has acknowledged, from now on."""
        with self._client() as client:
            if self._setting("appendonly") == "yes":
                # While an fsync takes long it may put off appending, unless each write waits.
                client.config_set("appendfsync", "always")
            else:
                # Nothing may be acknowledged that the dump lacks.
                client.client_pause(_PAUSE_MILLISECONDS, all=False)
                client.save()
