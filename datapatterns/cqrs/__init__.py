"""CQRS: read models that follow the log of events, each event exactly once."""

from datapatterns.cqrs.definition import (
    DELETE,
    AnyProjection,
    Projection,
    RedisProjection,
    on,
)
from datapatterns.cqrs.in_redis.redis_changes import RedisChanges
from datapatterns.cqrs.in_redis.redis_view import RedisView
from datapatterns.cqrs.in_redis.redis_view_async import AsyncRedisView
from datapatterns.cqrs.projections import Projections
from datapatterns.cqrs.running.progress import ProjectionProgress, ProjectionStatus
from datapatterns.cqrs.tables.differences import Difference, Verification

__all__ = [
    "DELETE",
    "AnyProjection",
    "AsyncRedisView",
    "Difference",
    "Projection",
    "ProjectionProgress",
    "ProjectionStatus",
    "Projections",
    "RedisChanges",
    "RedisProjection",
    "RedisView",
    "Verification",
    "on",
]
