"""Remove a version of a read model that nobody reads any more from Redis."""

from sqlalchemy import Connection, exists, func, update

from datapatterns.cqrs.in_redis.redis_checkpoint import DamagedError, LaterEpochError, Ticket
from datapatterns.cqrs.in_redis.redis_connection import redis_answers
from datapatterns.cqrs.in_redis.redis_read_model import RedisReadModel
from datapatterns.cqrs.schema import ProjectionTables
from datapatterns.errors import LeaseLostError, ProjectionDefinitionError
from datapatterns.transactions import resuming


def remove_from_redis(conn: Connection, tables: ProjectionTables, model: RedisReadModel) -> None:
    """Remove all keys of a version that is retired, some hundred at a time.

    It is fenced first, so no runner that is still under way writes after it; doing it again, after
    it broke off, goes on. In transactions of its own.

    Raises:
        CommitUnansweredError: The connection broke during a COMMIT; do it again.
        LeaseLostError: Somebody has taken the version up again, or Redis was emptied meanwhile.
        ProjectionDefinitionError: The version is not retired.
        ServerUnavailableError: Redis does not answer; do it again.
    """
    keys = model.keys
    with redis_answers():
        resource = f"version {keys.version} of projection {keys.name}"
        with resuming(conn, f"removing {resource}"):
            ticket = _fence(conn, tables, model)
        try:
            model.remove(ticket)
        except (LaterEpochError, DamagedError) as error:
            raise LeaseLostError(resource, epoch=ticket.epoch) from error


def _fence(conn: Connection, tables: ProjectionTables, model: RedisReadModel) -> Ticket:
    shards, projections = tables.shards, tables.projections
    name, version = model.keys.name, model.keys.version
    retired = exists().where(
        projections.c.name == name,
        projections.c.version == version,
        projections.c.status == "retired",
    )
    fenced = conn.execute(
        update(shards)
        .where(shards.c.name == name, shards.c.version == version, retired)
        .values(
            build=func.gen_random_uuid(),
            epoch=func.greatest(shards.c.epoch, model.epoch()) + 1,
            owner=None,
            lease_until=None,
            position=0,
        )
        .returning(shards.c.build, shards.c.epoch)
    ).one_or_none()
    if fenced is None:
        raise ProjectionDefinitionError(
            name, f"version {version} is not retired; retire it before its keys are removed"
        )
    build, epoch = fenced
    return Ticket(build, epoch)
