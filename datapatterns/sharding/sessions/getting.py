"""Load objects by their primary key: what is asked is known before, so it is prepared once."""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Select
from sqlalchemy.exc import NoResultFound
from sqlalchemy.orm import Mapper, Session

from datapatterns.sharding.sessions.shard_work import ShardWork


class _Listened:
    """A statement whose listeners have been called already: nobody is left."""

    @staticmethod
    def _remaining_events() -> Sequence[Any]:
        return ()


_LISTENED = _Listened()


def load_by_key(work: ShardWork, load: Callable[..., Any]) -> Callable[..., Any]:
    """Return what loads an object for `Session.get`; ``load`` does if there is more to be done.

    More is to be done if the caller gives options, locks the row, listens to statements or counts
    them, reads replicas, or if a part of the key is NULL; and of a Citus coordinator.
    """

    def load_one(
        session: Session,
        statement: Select[Any],
        identity: Sequence[Any],
        *,
        load_options: Any,  # noqa: ANN401 -- SQLAlchemy's own
        **more: Any,  # noqa: ANN401 -- SQLAlchemy's own
    ) -> Any:  # noqa: ANN401 -- the object
        access = work.access
        mapper: Mapper[Any] = statement._propagate_attrs["plugin_subject"]  # noqa: SLF001
        prepared = None
        if _is_simple(session, statement, identity, more) and work.is_plain:
            prepared = access.gets.of(mapper, access.placements, schema=access.schema)
        if prepared is None:
            return load(session, statement, identity, load_options=load_options, **more)
        shard_map = access.router.map_of(prepared.footprint.group)
        values = dict(zip(prepared.names, identity, strict=True))
        buckets = prepared.footprint.buckets(values, shard_map.strategy)
        if buckets is None or len(buckets) != 1:
            return load(session, statement, identity, load_options=load_options, **more)
        (bucket,) = buckets
        shard = shard_map.owners[bucket]
        if shard in access.citus:  # its nodes cannot be asked what the coordinator owns
            return load(session, statement, identity, load_options=load_options, **more)
        try:
            result = session._execute_internal(  # noqa: SLF001 -- as Session.execute does
                prepared.statement,
                values | prepared.guard(shard_map, bucket),
                execution_options={"_sa_orm_load_options": load_options},
                bind_arguments={"shard_id": shard, "asks_only": True},
                _parent_execute_state=_LISTENED,
            )
        except Exception:
            with access.asking(shard):
                raise
        try:
            return result.unique().scalars().one()
        except NoResultFound:
            return None

    return load_one


def _is_simple(
    session: Session, statement: Select[Any], identity: Sequence[Any], more: dict[str, Any]
) -> bool:
    return (
        None not in identity
        and statement._for_update_arg is None  # noqa: SLF001 -- there is no public name
        and not statement._with_options  # noqa: SLF001
        and not any(more.values())
        and len(session.dispatch.do_orm_execute) == 1  # the session itself
    )
