"""A router that asks for the map when it is needed first, and not when it is made."""

from typing import Any

from datapatterns.sharding.definition import EntityGroup
from datapatterns.sharding.maps.router import Router
from datapatterns.sharding.maps.shard_map import ShardMap


class LateRouter(Router):
    """As a `Router`; what that takes is taken here, and used at the first question.

    On asyncio a session is made where nobody can wait for the control database.
    """

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 -- what Router takes
        self._options: dict[str, Any] | None = options

    def map_of(self, group: EntityGroup) -> ShardMap:
        """Return the map of ``group``; read it first, if that was not done yet."""
        if self._options is not None:
            super().__init__(**self._options)
            self._options = None
        return super().map_of(group)
