"""Projections whose methods are watched for what they ask of the clock and of chance."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar

from datapatterns.cqrs.definition import AnyProjection
from datapatterns.cqrs.in_redis.redis_changes import RedisChanges
from datapatterns.purity import watched

P = TypeVar("P", bound=AnyProjection)
A = ParamSpec("A")

Notice: TypeAlias = Callable[[str], object]
"""Is told what was asked, and where."""


def watched_instance(projection: type[P], notice: Notice) -> P:
    """Return an instance whose methods are watched, and its functions that tell keys."""
    instance = projection()
    # Not of a subclass: what methods keep in their class must be seen by the next page.
    vars(instance)["handlers"] = tuple(
        replace(
            handler,
            apply=watched(handler.apply, notice),
            keys=handler.keys and watched(handler.keys, notice),
        )
        for handler in projection.handlers
    )
    return instance


class WatchedChanges(RedisChanges):
    """Watches the functions that fold documents, which are called when the page is resolved."""

    def __init__(self, notice: Notice) -> None:
        super().__init__()
        self._notice = notice

    def update_json(
        self,
        name: str,
        key: object,
        function: Callable[Concatenate[Any, A], object],
        *args: A.args,
        **kwargs: A.kwargs,
    ) -> None:
        """Do as `RedisChanges.update_json`, by a function that is watched."""
        super().update_json(name, key, watched(function, self._notice), *args, **kwargs)
