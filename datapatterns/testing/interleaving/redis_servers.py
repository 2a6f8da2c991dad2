"""What Redis says about the connections of a schedule: which of them wait in a blocking command."""

import threading
from collections.abc import Collection

import redis


class RedisServer:
    """The explorer's own connection to a Redis or Valkey that tasks use."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: redis.Redis | None = None
        self._lock = threading.Lock()

    def blocked(self, client_ids: Collection[int]) -> set[int]:
        """Return which of these connections wait in BLPOP, XREAD, WAIT and the like."""
        if not client_ids:
            return set()
        with self._lock:
            if self._client is None:
                self._client = redis.Redis.from_url(self._url, decode_responses=True)
            clients = self._client.client_list(client_id=list(client_ids))
        return {int(client["id"]) for client in clients if "b" in client["flags"]}

    def close(self) -> None:
        """Close the explorer's own connection."""
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None
