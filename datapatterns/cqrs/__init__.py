"""CQRS: read models that follow the log of events, each event exactly once."""

from datapatterns.cqrs.definition import DELETE, Projection, RedisProjection, on
from datapatterns.cqrs.differences import Difference, Verification
from datapatterns.cqrs.progress import ProjectionProgress, ProjectionStatus
from datapatterns.cqrs.projections import Projections
from datapatterns.cqrs.redis_changes import RedisChanges
from datapatterns.cqrs.redis_view import RedisView

__all__ = [
    "DELETE",
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
