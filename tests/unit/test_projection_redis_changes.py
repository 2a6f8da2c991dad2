import pytest

from datapatterns.cqrs.in_redis.redis_changes import SCORE_MAX, RedisChanges
from datapatterns.cqrs.in_redis.redis_keys import Place, RedisKeys

CENTS = Place("hash", "cents", "milk")
RANK = Place("zset", "rank", "milk")


def test_what_depends_on_the_stored_value_is_asked_for_and_nothing_else() -> None:
    changes = RedisChanges()
    changes.increment("cents", "milk", 5)
    changes.increment("cents", "milk", -2)
    changes.put("cents", "tea", "x")
    changes.remove("cents", "beer")
    changes.increment("cents", "beer", 4)

    assert changes.additions() == [CENTS]
    assert len(changes) == 3
    assert changes.resolved({CENTS: "10"}).places == {
        CENTS: "13",
        Place("hash", "cents", "tea"): "x",
        Place("hash", "cents", "beer"): "4",
    }


def test_what_is_not_there_counts_from_zero() -> None:
    changes = RedisChanges()
    changes.add_score("rank", "milk")
    changes.increment("cents", "milk", 10**30)

    assert changes.resolved({}).places == {RANK: "1", CENTS: str(10**30)}


def test_the_last_of_put_and_remove_wins() -> None:
    changes = RedisChanges()
    changes.put("cents", "milk", 1)
    changes.remove("cents", "milk")
    changes.set_score("rank", "milk", 7)
    changes.remove_member("rank", "milk")
    changes.set_score("rank", "milk", 8)

    assert changes.resolved({}).places == {CENTS: None, RANK: "8"}


def test_a_hash_and_a_sorted_set_of_one_name_do_not_meet() -> None:
    changes = RedisChanges()
    changes.increment("same", "x")
    changes.add_score("same", "x", 5)

    assert len(changes) == 2


def test_text_cannot_be_incremented() -> None:
    changes = RedisChanges()
    changes.put("cents", "milk", "cheap")
    with pytest.raises(ValueError, match="holds text"):
        changes.increment("cents", "milk")

    later = RedisChanges()
    later.increment("cents", "milk")
    with pytest.raises(ValueError, match="holds text"):
        later.resolved({CENTS: "cheap"})


@pytest.mark.parametrize("amount", [1.5, True, "1", None])
def test_amounts_are_integers(amount: object) -> None:
    with pytest.raises(TypeError, match="smallest units"):
        RedisChanges().increment("cents", "milk", amount)  # type: ignore[arg-type] # on purpose


@pytest.mark.parametrize("field", [1.5, True, None, b"x"])
def test_fields_are_text_or_integers(field: object) -> None:
    with pytest.raises(TypeError, match="convert"):
        RedisChanges().put("cents", field, 1)


def test_half_a_surrogate_pair_is_no_text() -> None:
    with pytest.raises(UnicodeEncodeError):
        RedisChanges().put("cents", "milk", "\ud800")


def test_scores_stay_where_floats_are_exact() -> None:
    changes = RedisChanges()
    changes.set_score("rank", "milk", SCORE_MAX)
    assert changes.resolved({}).places == {RANK: str(SCORE_MAX)}

    changes.add_score("rank", "milk")
    with pytest.raises(ValueError, match="exact"):
        changes.resolved({})


def test_keys_of_versions_and_prefixes_do_not_meet() -> None:
    keys = {
        RedisKeys(prefix, "d", version).of("hash", "x")
        for prefix in ("a", "b")
        for version in (1, 2)
    }

    assert len(keys) == 4
