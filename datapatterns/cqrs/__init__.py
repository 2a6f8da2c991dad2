"""CQRS: commands change the truth, each once; read models follow the log, each event once."""

from datapatterns.cqrs.building.building_progress import BuildProgress
from datapatterns.cqrs.commands.commands import Commands
from datapatterns.cqrs.commands.context import CommandContext
from datapatterns.cqrs.commands.executing import Executed
from datapatterns.cqrs.commands.forgetting import forget_executions
from datapatterns.cqrs.commands.handlers import CommandHandlers
from datapatterns.cqrs.definition import (
    DELETE,
    AnyProjection,
    Projection,
    RedisProjection,
    TableProjection,
    on,
)
from datapatterns.cqrs.determinism.reports import Determinism, Unsteady
from datapatterns.cqrs.in_redis.redis_changes import RedisChanges
from datapatterns.cqrs.in_redis.redis_view import RedisView
from datapatterns.cqrs.in_redis.redis_view_async import AsyncRedisView
from datapatterns.cqrs.messages.outbox import Outbox
from datapatterns.cqrs.messages.passing_on import Message, Refusal, Relayed
from datapatterns.cqrs.messages.relaying import relay_messages, relay_messages_async
from datapatterns.cqrs.projections import Projections
from datapatterns.cqrs.reading.answering import rows_of
from datapatterns.cqrs.reading.answers import Answer, Asked
from datapatterns.cqrs.reading.tokens import Token, latest_token
from datapatterns.cqrs.running.parking import Unapplied
from datapatterns.cqrs.running.progress import (
    ProjectionProgress,
    ProjectionStatus,
    SegmentStatus,
)
from datapatterns.cqrs.running.unapplied_lists import ParkedKey, SkippedEvent
from datapatterns.cqrs.running.working import ProjectionWorker, WorkDone
from datapatterns.cqrs.set_definition import Reads, SetProjection, StoredShape
from datapatterns.cqrs.tables.differences import Difference, Verification
from datapatterns.cqrs.tables.inline import InlineProjections
from datapatterns.cqrs.tables.live import LiveRows
from datapatterns.cqrs.tables.retrying import Retried
from datapatterns.cqrs.tables.upserting import upsert

__all__ = [
    "DELETE",
    "Answer",
    "AnyProjection",
    "Asked",
    "AsyncRedisView",
    "BuildProgress",
    "CommandContext",
    "CommandHandlers",
    "Commands",
    "Determinism",
    "Difference",
    "Executed",
    "InlineProjections",
    "LiveRows",
    "Message",
    "Outbox",
    "ParkedKey",
    "Projection",
    "ProjectionProgress",
    "ProjectionStatus",
    "ProjectionWorker",
    "Projections",
    "Reads",
    "RedisChanges",
    "RedisProjection",
    "RedisView",
    "Refusal",
    "Relayed",
    "Retried",
    "SegmentStatus",
    "SetProjection",
    "SkippedEvent",
    "StoredShape",
    "TableProjection",
    "Token",
    "Unapplied",
    "Unsteady",
    "Verification",
    "WorkDone",
    "forget_executions",
    "latest_token",
    "on",
    "relay_messages",
    "relay_messages_async",
    "rows_of",
    "upsert",
]
