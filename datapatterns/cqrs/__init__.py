"""CQRS: read models that follow the log of events, each event exactly once."""

from datapatterns.cqrs.definition import DELETE, Projection, RedisProjection, on
from datapatterns.cqrs.progress import ProjectionProgress, ProjectionStatus
from datapatterns.cqrs.projections import Projections

__all__ = [
    "DELETE",
    "Projection",
    "ProjectionProgress",
    "ProjectionStatus",
    "Projections",
    "RedisProjection",
    "on",
]
