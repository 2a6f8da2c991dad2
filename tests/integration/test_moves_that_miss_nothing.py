"""What changes while a bucket moves arrives, or the bucket stays: none of it is lost in silence.

All of it happens after both shards were compared, when only what was noted is looked at again.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError, OperationalError

from datapatterns.errors import MoveMismatchError, MoveRefusedError
from datapatterns.sharding import MoveProgress, ShardCluster
from datapatterns.sharding.moving import copying, cutting, draining
from datapatterns.sharding.moving.comparing import digest_of
from datapatterns.sharding.moving.copying import TablePair
from datapatterns.sharding.moving.holding import Side
from datapatterns.sharding.moving.moved_table import describe_tables
from datapatterns.sharding.moving.noted import read_noted
from datapatterns.sharding.moving.pacing import Pace
from datapatterns.sql.composing import execute
from datapatterns.testing import wait_until
from tests.fixtures.moving import bucket_rows, keys_in, put, states_of
from tests.fixtures.shard_model import households, sharded_shop

pytestmark = pytest.mark.postgres

BUCKET = 5
KEY, OTHER_KEY = keys_in(BUCKET, 2)
AS_REPLICA = "SET LOCAL session_replication_role = 'replica'"
GUARD = "zz_datapatterns_1_5_update"

After = Callable[..., None]


@pytest.fixture
def cluster(shard_urls: list[URL]) -> Iterator[ShardCluster]:
    with sharded_shop(shard_urls[:2]) as cluster:
        put(cluster, KEY, lines=2)
        put(cluster, OTHER_KEY, lines=1)
        yield cluster


@pytest.fixture
def source(cluster: ShardCluster) -> str:
    return cluster.router.map_of(households).owners[BUCKET]


@pytest.fixture
def target(source: str) -> str:
    return "s1" if source == "s0" else "s0"


@pytest.fixture
def after_comparison(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Let something happen once, when both shards have just been compared."""
    compare_before = cutting._compare_before  # noqa: SLF001 -- what is behind it comes later
    monkeypatch.setattr(cutting, "ROWS_COMPARED_AT_ONCE", -1)

    def arrange(happens: Callable[[], None]) -> None:
        left = [happens]

        def and_then(here: Side, there: Side, tables: Sequence[TablePair], pace: Pace) -> int:
            rows = compare_before(here, there, tables, pace)
            while left:
                left.pop()()
            return rows

        monkeypatch.setattr(cutting, "_compare_before", and_then)

    return arrange


def run(cluster: ShardCluster, shard: str, *statements: str) -> None:
    with cluster.engines[shard].begin() as conn:
        for statement in statements:
            conn.exec_driver_sql(statement.replace(":key", str(KEY)))


def on_each(cluster: ShardCluster, *statements: str) -> None:
    for shard in cluster.engines:
        run(cluster, shard, *statements)


def values(cluster: ShardCluster, shard: str, statement: str) -> list[object]:
    with cluster.engines[shard].connect() as conn:
        return list(conn.scalars(text(statement.replace(":key", str(KEY)))))


def move(cluster: ShardCluster, target: str) -> None:
    cluster.move(households, BUCKET, to=target, clean_after_seconds=0)


def owner(cluster: ShardCluster) -> str:
    [found] = [shard for shard, state in states_of(cluster, BUCKET).items() if state == "owned"]
    return found


def move_in_the_end(cluster: ShardCluster, target: str) -> None:
    """Move it; should it be refused, it is where it was, and can be moved after that."""
    with suppress(MoveMismatchError, MoveRefusedError):
        move(cluster, target)
    if owner(cluster) != target:
        assert cluster.moves() == []
        move(cluster, target)


CENTS = "SELECT cents FROM basket WHERE household_id = :key"
QUANTITIES = "SELECT quantity FROM line WHERE household_id = :key ORDER BY number"


# Keys --------------------------------------------------------------------------------------

KEYS = {
    "numeric(40, 20)": "1234567890.12345678901234567890",
    "numeric": "'NaN'",
    "int[]": "'[0:1]={1,2}'",
    "jsonb": "'null'",
    "float8": "'-0'",
    "float4": "0.1",
    "timestamptz": "'0044-03-15 12:00:00.000001 BC'",
    "timestamp": "'infinity'",
    "interval": "'-1 mon +2 days -03:04:05.6'",
    "bytea": "'\\xdeadbeef'",
    "char(5)": "'ab'",
    "text": "'Ünï\\\"''%s :x'",
    "citext": "'Ünï'",
    "loose": "'Ünï'",
    "mood": "'sad'",
    "pair": "'(1,\"a, b\")'",
    "numrange": "'[1.00000000000000000001,2)'",
    "inet": "'::1/64'",
    "bit(5)": "'10101'",
    '"char"': "'\\001'",
    "tsvector": "'a:1 b'",
    "money": "1234.5",
}
NEEDED = {
    "citext": {"citext": "SELECT 1 FROM pg_available_extensions WHERE name = 'citext'"},
    "loose": {"ICU": "SELECT 1 FROM pg_collation WHERE collname = 'und-x-icu'"},
}


@pytest.mark.parametrize("type_name", KEYS)
def test_a_row_is_found_again_by_its_key_of_whatever_type(
    cluster: ShardCluster, source: str, target: str, after_comparison: After, type_name: str
) -> None:
    for needed, asking in NEEDED.get(type_name, {}).items():
        if not values(cluster, source, asking):
            pytest.skip(f"the server has no {needed}")
    prepared = {
        "citext": "CREATE EXTENSION citext",
        "mood": "CREATE TYPE mood AS ENUM ('glad', 'sad')",
        "pair": "CREATE TYPE pair AS (a int, b text)",
        "loose": "CREATE COLLATION loose"
        " (provider = icu, locale = 'und-u-ks-level1', deterministic = false)",
    }
    on_each(
        cluster,
        *([prepared[type_name]] if type_name in prepared else []),
        f"ALTER TABLE line ADD k {'text COLLATE loose' if type_name == 'loose' else type_name}"
        f" NOT NULL DEFAULT {KEYS[type_name]}, DROP CONSTRAINT line_pkey",
        "ALTER TABLE line ADD PRIMARY KEY (household_id, basket_id, number, k)",
    )
    after_comparison(
        lambda: run(
            cluster,
            source,
            "UPDATE line SET quantity = 77 WHERE household_id = :key AND number = 0",
            "DELETE FROM line WHERE household_id = :key AND number = 1",
        )
    )

    move(cluster, target)

    assert values(cluster, target, QUANTITIES) == [77]


def test_a_table_may_be_a_partition_of_another(
    cluster: ShardCluster, source: str, target: str, after_comparison: After
) -> None:
    on_each(
        cluster,
        "CREATE TABLE every_line (LIKE line) PARTITION BY LIST (number)",
        "ALTER TABLE every_line ATTACH PARTITION line DEFAULT",
    )
    after_comparison(
        lambda: run(cluster, source, "UPDATE every_line SET quantity = 7 WHERE household_id = :key")
    )

    move(cluster, target)

    assert values(cluster, target, QUANTITIES) == [7, 7]


def test_what_is_noted_of_a_table_that_does_not_move_is_not_forgotten(
    cluster: ShardCluster, source: str, target: str, after_comparison: After
) -> None:
    after_comparison(
        lambda: run(
            cluster,
            source,
            "INSERT INTO datapatterns.dirty_key (group_id, bucket, table_oid, pk)"
            f" SELECT 1, {BUCKET}, 'product'::regclass, '{{}}'",
        )
    )

    with pytest.raises(MoveRefusedError, match="no table that moves"):
        move(cluster, target)

    assert owner(cluster) == source


# Who is not noted --------------------------------------------------------------------------


@pytest.mark.parametrize("again", ["ENABLE ALWAYS", "ENABLE", None])
def test_what_a_session_changes_that_has_disabled_the_triggers_is_not_lost(
    cluster: ShardCluster, source: str, target: str, after_comparison: After, again: str | None
) -> None:
    after_comparison(
        lambda: run(
            cluster,
            source,
            f"ALTER TABLE basket DISABLE TRIGGER {GUARD}",
            "UPDATE basket SET cents = 77 WHERE household_id = :key",
            *([f"ALTER TABLE basket {again} TRIGGER {GUARD}"] if again else []),
        )
    )

    move_in_the_end(cluster, target)

    assert values(cluster, target, CENTS) == [77]


def test_triggers_that_no_longer_fire_for_replication_do_not_let_it_pass(
    cluster: ShardCluster, source: str, target: str, after_comparison: After
) -> None:
    def happens() -> None:
        run(cluster, source, "ALTER TABLE basket ENABLE TRIGGER ALL")
        run(cluster, source, AS_REPLICA, "UPDATE basket SET cents = 77 WHERE household_id = :key")

    after_comparison(happens)

    move_in_the_end(cluster, target)

    assert values(cluster, target, CENTS) == [77]


@pytest.mark.parametrize("disabled", ["source", "target"])
def test_triggers_that_are_disabled_already_are_made_anew(
    cluster: ShardCluster, source: str, target: str, after_comparison: After, disabled: str
) -> None:
    shard = {"source": source, "target": target}[disabled]
    refused: list[object] = []

    def disable(progress: MoveProgress) -> None:
        if progress.move.state == "cut":
            run(cluster, shard, "ALTER TABLE basket DISABLE TRIGGER ALL")

    def happens() -> None:
        try:
            run(cluster, shard, "UPDATE basket SET cents = 77 WHERE household_id = :key")
        except DBAPIError as error:
            refused.append(getattr(error.orig, "sqlstate", None))

    after_comparison(happens)

    cluster.move(households, BUCKET, to=target, clean_after_seconds=0, progress=disable)

    if disabled == "source":
        assert (values(cluster, target, CENTS), refused) == ([77], [])
    else:
        assert (values(cluster, target, CENTS), refused) == ([None], ["SD001"])


def test_arriving_rows_are_not_changed_by_who_has_disabled_the_triggers(
    cluster: ShardCluster, target: str, after_comparison: After
) -> None:
    on_each(cluster, "UPDATE basket SET cents = 10")
    after_comparison(
        lambda: run(
            cluster,
            target,
            f"ALTER TABLE basket DISABLE TRIGGER {GUARD}",
            "UPDATE basket SET cents = 11",
            f"ALTER TABLE basket ENABLE ALWAYS TRIGGER {GUARD}",
        )
    )

    move_in_the_end(cluster, target)

    assert values(cluster, target, CENTS) == [10]


@pytest.mark.parametrize("emptied", ["source", "target"])
def test_nothing_is_emptied_by_replication_either(
    cluster: ShardCluster, source: str, target: str, after_comparison: After, emptied: str
) -> None:
    shard = {"source": source, "target": target}[emptied]
    refused: list[object] = []

    def happens() -> None:
        try:
            run(cluster, shard, AS_REPLICA, "TRUNCATE basket, line")
        except DBAPIError as error:
            refused.append(getattr(error.orig, "sqlstate", None))

    after_comparison(happens)

    move_in_the_end(cluster, target)

    assert refused == ["SD002"]
    assert bucket_rows(cluster, target, BUCKET) == (2, 3)


def test_a_setting_of_the_mover_does_not_let_others_pass(
    cluster: ShardCluster, source: str, target: str, after_comparison: After
) -> None:
    after_comparison(
        lambda: run(
            cluster,
            source,
            "SET LOCAL datapatterns.mover = 'on'",
            "UPDATE basket SET cents = 77 WHERE household_id = :key",
        )
    )

    move_in_the_end(cluster, target)

    assert values(cluster, target, CENTS) == [77]


# Tables that are changed -------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE basket ALTER cents TYPE int USING 77",
        "ALTER TABLE basket DROP cents, ADD cents int DEFAULT 77",
    ],
)
def test_rows_that_are_changed_with_their_table_are_not_lost(
    cluster: ShardCluster, source: str, target: str, after_comparison: After, statement: str
) -> None:
    on_each(cluster, "ALTER TABLE basket DROP cents, ADD cents int")
    after_comparison(lambda: run(cluster, source, statement))

    with suppress(MoveMismatchError, MoveRefusedError):
        move(cluster, target)

    assert values(cluster, owner(cluster), CENTS) == [77]


def test_rows_of_an_heir_are_not_left_behind(
    cluster: ShardCluster, source: str, target: str, after_comparison: After
) -> None:
    after_comparison(
        lambda: run(
            cluster,
            source,
            "CREATE TABLE heir () INHERITS (basket)",
            "INSERT INTO heir (household_id, id, cents) VALUES (:key, 9, 77)",
        )
    )

    with suppress(MoveMismatchError, MoveRefusedError):
        move(cluster, target)

    assert values(cluster, owner(cluster), CENTS) == [None, 77]


def test_a_trigger_that_comes_meanwhile_and_changes_keys_does_not_hide_rows(
    cluster: ShardCluster, source: str, target: str, after_comparison: After
) -> None:
    on_each(
        cluster,
        "CREATE FUNCTION other() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN NEW.number := NEW.number + 100; RETURN NEW; END'",
    )

    def happens() -> None:
        on_each(
            cluster,
            "CREATE TRIGGER zzz BEFORE INSERT ON line FOR EACH ROW EXECUTE FUNCTION other()",
        )
        run(cluster, source, "INSERT INTO line VALUES (:key, 1, 7, 77)")

    after_comparison(happens)

    with suppress(MoveMismatchError, MoveRefusedError):
        move(cluster, target)

    assert values(cluster, owner(cluster), QUANTITIES) == [1, 1, 77]


# Who writes in the transactions of the mover ------------------------------------------------


@pytest.mark.parametrize("fires", ["ALWAYS", "REPLICA"])
@pytest.mark.parametrize("kind", ["trigger", "rule"])
def test_what_would_write_on_behalf_of_the_mover_is_refused(
    cluster: ShardCluster, source: str, target: str, after_comparison: After, kind: str, fires: str
) -> None:
    create = {
        "trigger": "CREATE TRIGGER counted AFTER DELETE ON line FOR EACH ROW"
        " EXECUTE FUNCTION count_lines()",
        "rule": "CREATE RULE counted AS ON DELETE TO line DO ALSO"
        " UPDATE basket SET big = coalesce(big, 0) + 1",
    }
    on_each(
        cluster,
        "CREATE FUNCTION count_lines() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN UPDATE basket SET big = coalesce(big, 0) + 1; RETURN NULL; END'",
        create[kind],
        f"ALTER TABLE line ENABLE {fires} {kind} counted",
    )
    after_comparison(
        lambda: run(cluster, source, "UPDATE line SET quantity = 7 WHERE household_id = :key")
    )

    with pytest.raises(MoveRefusedError, match="counted"):
        move(cluster, target)

    assert owner(cluster) == source


# Where the bucket was not -------------------------------------------------------------------


def test_rows_that_somebody_has_put_on_the_target_are_not_removed(
    cluster: ShardCluster, source: str, target: str
) -> None:
    run(cluster, target, "INSERT INTO basket (household_id, id, cents) VALUES (:key, 9, 77)")

    with pytest.raises(MoveRefusedError, match="basket"):
        move(cluster, target)

    assert values(cluster, target, CENTS) == [77]
    assert states_of(cluster, BUCKET) == {source: "owned"}


# Others at the same time --------------------------------------------------------------------


def test_the_cut_waits_for_a_session_that_has_disabled_the_triggers(
    cluster: ShardCluster, source: str, target: str, after_comparison: After
) -> None:
    with cluster.engines[source].connect() as late, ThreadPoolExecutor(1) as pool:

        def happens() -> None:
            late.exec_driver_sql(f"ALTER TABLE basket DISABLE TRIGGER {GUARD}")
            late.execute(
                text("UPDATE basket SET cents = 77 WHERE household_id = :key"), {"key": KEY}
            )

        after_comparison(happens)
        moving = pool.submit(move, cluster, target)
        wait_until(lambda: moving.done() or waits_for_a_table(cluster, source))
        late.commit()
        with suppress(MoveMismatchError, MoveRefusedError):
            moving.result()

    move_in_the_end(cluster, target)

    assert values(cluster, target, CENTS) == [77]


def waits_for_a_table(cluster: ShardCluster, shard: str) -> bool:
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'relation' AND NOT granted"
    return values(cluster, shard, waiting) != [0]


REWRITE = "ALTER TABLE line ALTER quantity TYPE int USING quantity"


@pytest.mark.parametrize("reading", ["the copy", "a round"])
def test_a_table_is_not_rewritten_while_it_is_read(
    cluster: ShardCluster,
    source: str,
    target: str,
    after_comparison: After,
    monkeypatch: pytest.MonkeyPatch,
    reading: str,
) -> None:
    """To a snapshot from before, it would look empty."""
    found: list[type[Exception] | None] = []

    def rewrite() -> None:
        try:
            run(cluster, source, "SET LOCAL lock_timeout = '50ms'", REWRITE)
            found.append(None)
        except OperationalError as error:
            found.append(type(error))

    def rewriting(function: Callable[..., object]) -> Callable[..., object]:
        def called(*arguments: object, **options: object) -> object:
            result = function(*arguments, **options)
            rewrite()
            return result

        return called

    def happens() -> None:
        run(cluster, source, "UPDATE line SET quantity = 7 WHERE household_id = :key")
        monkeypatch.setattr(draining, "read_noted", rewriting(read_noted))

    if reading == "the copy":
        monkeypatch.setattr(copying, "execute", rewriting(execute))
    else:
        after_comparison(happens)

    move(cluster, target)

    assert set(found) == {OperationalError}
    assert values(cluster, target, QUANTITIES) == ([1, 1] if reading == "the copy" else [7, 7])


def test_the_source_is_cleaned_of_its_own_rows_alone(
    cluster: ShardCluster, source: str, target: str
) -> None:
    """Rows of an heir are in the same places, counted in its own file."""

    def inherit(progress: MoveProgress) -> None:
        if progress.move.state == "handed_over" and not made:
            made.append(True)
            run(
                cluster,
                source,
                "CREATE TABLE heir () INHERITS (basket)",
                "INSERT INTO heir (household_id, id) SELECT 1000000 + n, n"
                " FROM generate_series(1, 9) AS n",
            )

    made: list[bool] = []
    cluster.move(households, BUCKET, to=target, clean_after_seconds=0, progress=inherit)

    assert values(cluster, source, "SELECT count(*) FROM heir") == [9]


# The comparison -----------------------------------------------------------------------------


def test_the_comparison_tells_rows_apart_that_have_exchanged_values(
    cluster: ShardCluster, source: str
) -> None:
    """The hash of a record is linear: the sum of two is often that of two with other halves."""
    shard_map = cluster.router.map_of(households)
    with cluster.engines[source].connect() as conn:
        declared = cluster._moving.tables_of(households)  # noqa: SLF001 -- as a mover has them
        [_, table] = describe_tables(conn, declared, shard_map, BUCKET, schema="datapatterns")
        side = Side(conn, source, shard_map.group_id, BUCKET, 1, "datapatterns")
        unnoticed = []
        changed = text(
            "UPDATE line SET quantity = CASE number WHEN 0 THEN :a ELSE :b END"
            " WHERE household_id = :key"
        )
        for value in range(10, 30):
            digests = set()
            for a, b in ((value, 7), (7, value)):
                conn.execute(changed, {"a": a, "b": b, "key": KEY})
                digests.add(digest_of(side, table, like=table))
            unnoticed += [value] * (len(digests) == 1)

    assert unnoticed == []
