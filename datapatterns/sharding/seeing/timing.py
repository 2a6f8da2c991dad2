"""Count statements of sessions and connections, with the time that they take."""

import re
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter_ns
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Connection, event

from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.routing.footprint import Footprint
from datapatterns.sharding.routing.key_conditions import Parameters
from datapatterns.sharding.seeing.load_watch import LoadWatch
from datapatterns.sharding.strategies.strategy import Key

_WRITES = re.compile(r"\s*(insert|update|delete|merge|copy)\b", re.IGNORECASE)
_UNWATCHED = nullcontext()


def timed(
    load: LoadWatch | None,
    shard_map: ShardMap,
    buckets: Collection[int] | None,
    keys: Collection[Key] | None,
    *,
    writes: bool,
) -> AbstractContextManager[object]:
    """Return what counts the statement in its block, unless that fails, or is for all buckets."""
    if load is None or not buckets:
        return _UNWATCHED
    return _Timed(load, shard_map.group_id, buckets, keys or (), writes=writes)


def timed_read(
    load: LoadWatch | None,
    shard_map: ShardMap,
    buckets: Collection[int] | None,
    footprint: Footprint,
    values: Parameters,
) -> AbstractContextManager[object]:
    """Return what counts the read in its block, as `timed` does."""
    if load is None or not buckets:
        return _UNWATCHED
    return _Timed(load, shard_map.group_id, buckets, footprint.keys(values) or (), writes=False)


class _Timed:
    __slots__ = ("_began", "_buckets", "_group_id", "_keys", "_load", "_writes")

    def __init__(
        self,
        load: LoadWatch,
        group_id: int,
        buckets: Collection[int],
        keys: Collection[Key],
        *,
        writes: bool,
    ) -> None:
        self._load = load
        self._group_id = group_id
        self._buckets = buckets
        self._keys = keys
        self._writes = writes

    def __enter__(self) -> None:
        self._began = perf_counter_ns()

    def __exit__(
        self, kind: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None
    ) -> None:
        if kind is None:
            self._load.add(
                self._group_id,
                self._buckets,
                self._keys,
                writes=self._writes,
                busy_us=(perf_counter_ns() - self._began) // 1000,
            )


class TimedFlush:
    """Counts the objects that a flush writes, each with its share of the time."""

    __slots__ = ("_began", "_load", "_written")

    def __init__(self, load: LoadWatch | None) -> None:
        self._load = load
        self._written: dict[int, tuple[list[int], list[Key]]] = {}

    def wrote(self, shard_map: ShardMap, bucket: int, key: Key) -> None:
        """Remember an object that is being written."""
        if self._load is not None:
            buckets, keys = self._written.setdefault(shard_map.group_id, ([], []))
            buckets.append(bucket)
            keys.append(key)

    def __enter__(self) -> Self:
        if self._load is not None:
            self._began = perf_counter_ns()
            self._written.clear()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None
    ) -> None:
        if self._load is None or not self._written or kind is not None:
            return
        busy_us = (perf_counter_ns() - self._began) // 1000
        objects = sum(len(keys) for _, keys in self._written.values())
        for group_id, (buckets, keys) in self._written.items():
            share = busy_us * len(keys) // objects
            self._load.add(group_id, buckets, keys, writes=True, busy_us=share)


def count_statements(
    conn: Connection, load: LoadWatch | None, shard_map: ShardMap, bucket: int, key: Key
) -> None:
    """Count each statement that the caller executes on ``conn``."""
    if load is None:
        return
    began: list[int] = []

    def before(*_: Any) -> None:  # noqa: ANN401 -- as SQLAlchemy calls it
        began[:] = [perf_counter_ns()]

    def after(_conn: object, _cursor: object, statement: str, *_: Any) -> None:  # noqa: ANN401
        load.add(
            shard_map.group_id,
            (bucket,),
            (key,),
            writes=_WRITES.match(statement) is not None,
            busy_us=(perf_counter_ns() - began[0]) // 1000,
        )

    event.listen(conn, "before_cursor_execute", before)
    event.listen(conn, "after_cursor_execute", after)
