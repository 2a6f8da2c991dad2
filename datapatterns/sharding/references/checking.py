"""Hold a transaction to the references of its cluster: what rows refer to is there, and stays.

A child's transaction locks the parent on the parent's shard until all of it has happened. Who
deletes a parent waits for such locks, ends what is decided and only prepared on the shards of
children, since a lock goes with the commit that decides, and only then looks for children.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Protocol, TypeAlias, TypeVar

from sqlalchemy import ColumnElement, Connection, true

from datapatterns.errors import (
    MultiShardWriteError,
    ParentInUseError,
    ParentMissingError,
    ReferenceWriteError,
    UnroutableKeyError,
)
from datapatterns.failpoints import failpoint
from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.atomic.settling import Settling
from datapatterns.sharding.definition import EntityGroup
from datapatterns.sharding.maps.elsewhere import not_elsewhere
from datapatterns.sharding.maps.ownership import agrees_with_map, owns_buckets
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.reaching.asking import ask_connected
from datapatterns.sharding.references.changes import Changes
from datapatterns.sharding.references.declared import PlacedReference
from datapatterns.sharding.references.definition import Values
from datapatterns.sharding.references.questions import (
    checked_values,
    existing_parents,
    lock_parents,
    referred_keys,
    refuse_old_snapshot,
)
from datapatterns.sharding.routing.footprint import leaf_of

T = TypeVar("T")

Keys: TypeAlias = dict[PlacedReference, set[Values]]


class Reach(Protocol):
    """What a transaction over shards lets references do."""

    def connect(self, shards: Collection[str]) -> Mapping[str, Connection]:
        """Return its connections to the primaries of shards."""
        ...

    def write_to(self, shard: str) -> None:
        """Take note that it writes there, so that all of it happens on that shard, too.

        Raises:
            MultiShardWriteError: It has written to another one, and may not write to several.
        """
        ...

    def claim(self, shard: str, shard_map: ShardMap, buckets: Collection[int]) -> None:
        """Keep buckets on a shard until the transaction ends."""
        ...

    def is_in_savepoint(self) -> bool:
        """Return whether what it locks now may be given back before its end."""
        ...


class ReferenceChecks:
    """Checks what one transaction writes.

    Args:
        access: The way to the shards.
        reach: The transaction.
    """

    def __init__(self, access: ShardAccess, reach: Reach) -> None:
        self._access = access
        self._reach = reach
        # Beside the transaction: it must not wait for connections that others like it hold.
        engines = access.companions.side_engines or access.engines
        self._settling = Settling(engines, access.schema)
        self._locked: set[tuple[PlacedReference, Values]] = set()
        self._maps: dict[str, ShardMap] = {}

    def check(self, changes: Changes) -> None:
        """Check what has just been written.

        If this fails, that must not be committed.

        Raises:
            BranchesUnsettledError: Nobody can tell whether there are children.
            IsolationLevelError: A row that is referred to is to go, and the transaction cannot see
                who has come to refer to it.
            ParentInUseError: Rows refer to one that has gone.
            ParentMissingError: Rows refer to one that is not there.
            ReferenceWriteError: The parent is on another shard, and the session is not atomic.
            ShardUnavailableError: A shard does not answer.
            StaleShardMapError: A bucket has moved; repeat the transaction.
        """
        self._maps.clear()
        for reference, keys in changes.gone.items():
            # It may have been locked, by whatever reference, when it was there still.
            parent = reference.declared.parent_table
            self._locked = {
                (other, key)
                for other, key in self._locked
                if other.declared.parent_table is not parent or key not in keys
            }
        self._require_parents(changes.wanted)
        if changes.gone:
            self._refuse_children(changes.gone)

    def end(self) -> None:
        """Forget what the transaction has locked."""
        self._locked.clear()

    # Parents -------------------------------------------------------------------------------

    def _require_parents(self, wanted: Mapping[PlacedReference, set[Values]]) -> None:
        if not (new := self._not_locked(wanted)):
            return
        for shard, keys_there in (placed := self._by_parents_shard(new)).items():
            self._become_writer(shard, keys_there)
        found = self._ask(placed, self._lock, in_turns=True)
        for shard, keys_there in placed.items():
            for reference, keys in keys_there.items():
                if missing := keys - found[shard].get(reference, set()):
                    raise ParentMissingError(
                        reference.name, reference.declared.parent_table.name, missing
                    )
        failpoint("reference.parents-locked")
        if not self._reach.is_in_savepoint():
            self._locked.update((each, key) for each, keys in new.items() for key in keys)

    def _not_locked(self, wanted: Mapping[PlacedReference, set[Values]]) -> Keys:
        new: Keys = {}
        for reference, keys in wanted.items():
            checked = {checked_values(reference, key) for key in keys}
            if ahead := {key for key in checked if (reference, key) not in self._locked}:
                new[reference] = ahead
        return new

    def _by_parents_shard(self, keys: Mapping[PlacedReference, set[Values]]) -> dict[str, Keys]:
        placed: dict[str, Keys] = {}
        for reference, values in keys.items():
            shard_map = self._map(reference.parent_key.group)
            for key in values:
                try:
                    shard = shard_map.shard_of(reference.parent_shard_key(key))
                except UnroutableKeyError as error:  # so there can be no such row
                    parent = reference.declared.parent_table.name
                    raise ParentMissingError(reference.name, parent, [key]) from error
                placed.setdefault(shard, {}).setdefault(reference, set()).add(key)
        return dict(sorted(placed.items()))

    def _become_writer(self, shard: str, keys: Keys) -> None:
        try:
            self._reach.write_to(shard)
        except MultiShardWriteError as error:
            reference = next(iter(keys))
            raise ReferenceWriteError(
                reference.name,
                f"a row of {reference.declared.parent_table.name} is on shard {shard!r}, and has to"
                " stay there until this transaction has happened on another one",
                "use session(atomic=True)",
            ) from error

    def _lock(self, shard: str, keys: Keys, conn: Connection) -> Keys:
        for reference, values in keys.items():
            # Locks do not move along with a bucket, so it has to stay.
            self._claim_parents(shard, reference, values)
        return {each: self._locked_on(shard, conn, each, keys[each]) for each in keys}

    def _claim_parents(self, shard: str, reference: PlacedReference, keys: set[Values]) -> None:
        shard_map = self._map(reference.parent_key.group)
        buckets = shard_map.buckets_of(map(reference.parent_shard_key, keys))
        self._reach.claim(shard, shard_map, buckets)

    def _locked_on(
        self, shard: str, conn: Connection, reference: PlacedReference, keys: set[Values]
    ) -> set[Values]:
        found = lock_parents(conn, reference, keys)
        # One that has been inserted, and is only prepared here, has happened as well.
        if (missing := keys - found) and self._settling.settle(conn, shard):
            found |= lock_parents(conn, reference, missing)
        return found

    # Children ------------------------------------------------------------------------------

    def _refuse_children(self, gone: Keys) -> None:
        placed = self._by_childrens_shard(gone)
        referred: Keys = {}
        for found in self._ask(placed, self._children).values():
            for reference, keys in found.items():
                referred.setdefault(reference, set()).update(keys)
        failpoint("reference.children-looked")
        if not referred:
            return
        # Another row may have got the key in the same transaction.
        for reference, keys in self._without_parents(referred).items():
            declared = reference.declared
            raise ParentInUseError(
                reference.name, declared.child_table.name, declared.parent_table.name, keys
            )

    def _by_childrens_shard(self, gone: Keys) -> dict[str, Keys]:
        placed: dict[str, Keys] = {}
        for reference, keys in gone.items():
            shard_map = self._map(reference.child_key.group)
            for key in keys:
                for shard in self._shards_of_children(reference, key, shard_map):
                    placed.setdefault(shard, {}).setdefault(reference, set()).add(key)
        return dict(sorted(placed.items()))

    @staticmethod
    def _shards_of_children(
        reference: PlacedReference, key: Values, shard_map: ShardMap
    ) -> Iterable[str]:
        shard_key = reference.child_shard_key(key)
        if shard_key is None:
            return {*shard_map.shards_of(shard_map.buckets)}
        return shard_map.shards_of(shard_map.buckets_with([shard_key]))

    def _children(self, shard: str, keys: Keys, conn: Connection) -> Keys:
        refuse_old_snapshot(conn)
        self._settling.settle(conn, shard)
        failpoint("reference.branches-settled")
        found: Keys = {}
        for reference, values in keys.items():
            guard, confined = self._guards(shard, reference, values)
            if referred := referred_keys(conn, reference, values, guard, confined):
                found[reference] = referred
        return found

    def _guards(
        self, shard: str, reference: PlacedReference, keys: set[Values]
    ) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
        """Return the condition that the shard owns what the map says, and which rows are its own.

        Rows of a bucket that is coming, or has just left, are looked at where its owner is.
        """
        access, schema = self._access, self._access.schema
        shard_map = self._map(reference.child_key.group)
        shard_keys = [reference.child_shard_key(key) for key in keys]
        known = [each for each in shard_keys if each is not None]
        if len(known) == len(shard_keys):
            buckets = shard_map.buckets_with(known)
            mine = [bucket for bucket in buckets if shard_map.owners[bucket] == shard]
            return owns_buckets(shard_map, mine, schema=schema), true()
        leaf = leaf_of(reference.declared.child_table, access.placements)
        return (
            agrees_with_map(shard_map, shard, schema=schema),
            not_elsewhere(leaf, shard_map, shard, schema=schema),
        )

    def _without_parents(self, keys: Keys) -> Keys:
        placed = self._by_parents_shard(keys)

        def look(_shard: str, there: Keys, conn: Connection) -> Keys:
            return {each: there[each] - existing_parents(conn, each, there[each]) for each in there}

        left: Keys = {}
        for found in self._ask(placed, look).values():
            for reference, missing in found.items():
                if missing:
                    left.setdefault(reference, set()).update(missing)
        return left

    # Both ----------------------------------------------------------------------------------

    def _map(self, group: EntityGroup) -> ShardMap:
        """Return one map throughout a check: which shards are asked has to be what is agreed on."""
        if group.name not in self._maps:
            self._maps[group.name] = self._access.router.map_of(group)
        return self._maps[group.name]

    def _ask(
        self,
        placed: Mapping[str, Keys],
        ask: Callable[[str, Keys, Connection], T],
        *,
        in_turns: bool = False,
    ) -> dict[str, T]:
        """Ask all shards at once, on the transaction's own connections."""
        # Now, while nothing else is at work.
        connections = self._reach.connect(placed.keys())
        with self._access.learning():
            return ask_connected(
                self._access.fan_out,
                {
                    shard: (conn, partial(ask, shard, placed[shard], conn))
                    for shard, conn in connections.items()
                },
                in_turns=in_turns,
            ).given
