"""Sharding: rows of one key live together on one of several servers."""

from datapatterns.sharding.atomic import AtomicWork, Recovered
from datapatterns.sharding.broadcasting.comparing import CopyComparison, CopyDifference
from datapatterns.sharding.broadcasting.definition import Broadcast
from datapatterns.sharding.citus.citus_shard import CitusShard
from datapatterns.sharding.citus.fitness import CitusFinding
from datapatterns.sharding.cluster import ShardCluster
from datapatterns.sharding.definition import EntityGroup, ShardKey
from datapatterns.sharding.ids import IdGenerator, IdParts, parts_of_id
from datapatterns.sharding.maps.map_change import MapChange
from datapatterns.sharding.maps.router import Router
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.migrating.drift import SchemaDifference
from datapatterns.sharding.migrating.environment import AlembicEnvironment
from datapatterns.sharding.migrating.looking import ShardSchema
from datapatterns.sharding.migrating.migrations import ShardMigrations, ShardPlan
from datapatterns.sharding.migrating.recording import ShardRun
from datapatterns.sharding.migrating.running import MigrationPace
from datapatterns.sharding.moving.move import Move, MoveProgress
from datapatterns.sharding.reaching.health import ShardFinding, ShardHealth, check_shards
from datapatterns.sharding.reaching.options import AllShards
from datapatterns.sharding.reaching.replicas import Shard
from datapatterns.sharding.reaching.results import ShardResult
from datapatterns.sharding.reaching.tokens import ShardToken
from datapatterns.sharding.references.auditing import BrokenReference, ReferenceAudit
from datapatterns.sharding.references.definition import ShardForeignKey
from datapatterns.sharding.rekeying.row_moving import RowMove
from datapatterns.sharding.scatter.explaining import ReadPlan
from datapatterns.sharding.scatter.keyset import Keyset, KeysetPage, keyset
from datapatterns.sharding.seeing.counting import BucketStats, ShardStats, TableCount
from datapatterns.sharding.seeing.drawing import draw_stats
from datapatterns.sharding.seeing.linting import LintFinding
from datapatterns.sharding.seeing.load_watch import LoadWatch
from datapatterns.sharding.seeing.looking import HotKey
from datapatterns.sharding.seeing.rebalance_plan import RebalancePlan
from datapatterns.sharding.seeing.rebalancing import BucketMove, in_rounds, plan_moves
from datapatterns.sharding.sessions.pinned_session import PinnedSession
from datapatterns.sharding.sessions.shard_session import ShardSession
from datapatterns.sharding.strategies import (
    Composite,
    CompositeKey,
    Directory,
    Hash,
    Jump,
    Ketama,
    Key,
    KeyPart,
    ListMap,
    Modulo,
    Range,
    Rendezvous,
    ShardingStrategy,
)

__all__ = [
    "AlembicEnvironment",
    "AllShards",
    "AtomicWork",
    "Broadcast",
    "BrokenReference",
    "BucketMove",
    "BucketStats",
    "CitusFinding",
    "CitusShard",
    "Composite",
    "CompositeKey",
    "CopyComparison",
    "CopyDifference",
    "Directory",
    "EntityGroup",
    "Hash",
    "HotKey",
    "IdGenerator",
    "IdParts",
    "Jump",
    "Ketama",
    "Key",
    "KeyPart",
    "Keyset",
    "KeysetPage",
    "LintFinding",
    "ListMap",
    "LoadWatch",
    "MapChange",
    "MigrationPace",
    "Modulo",
    "Move",
    "MoveProgress",
    "PinnedSession",
    "Range",
    "ReadPlan",
    "RebalancePlan",
    "Recovered",
    "ReferenceAudit",
    "Rendezvous",
    "Router",
    "RowMove",
    "SchemaDifference",
    "Shard",
    "ShardCluster",
    "ShardFinding",
    "ShardForeignKey",
    "ShardHealth",
    "ShardKey",
    "ShardMap",
    "ShardMigrations",
    "ShardPlan",
    "ShardResult",
    "ShardRun",
    "ShardSchema",
    "ShardSession",
    "ShardStats",
    "ShardToken",
    "ShardingStrategy",
    "TableCount",
    "check_shards",
    "draw_stats",
    "in_rounds",
    "keyset",
    "parts_of_id",
    "plan_moves",
]
