import pytest

from datapatterns.cache_aside.lua_scripts import WRITERS_MAX
from datapatterns.cache_aside.milestones import (
    OLDEST_MS,
    Milestone,
    Survey,
    seen_for_certain,
)
from datapatterns.cache_aside.redis_commands import answer_to, survey_in
from datapatterns.cache_aside.steps import Acquire, Ask, CacheSilence, Granted
from datapatterns.change_log.snapshots import Snapshot, Xid

NOW = 1_000_000


def snapshot(text: str) -> Snapshot:
    return Snapshot.parse(text)


def survey(*milestones: Milestone, losses: str = "run:0:begin") -> Survey:
    return Survey(NOW, losses, milestones)


def milestone(text: str, *, age_ms: int = 100, losses: str = "run:0:begin") -> Milestone:
    return Milestone(NOW - age_ms, losses, snapshot(text))


def writers(*xids: int) -> frozenset[Xid]:
    return frozenset(map(Xid, xids))


def test_a_snapshot_that_shows_all_writers_and_a_milestone_is_admitted() -> None:
    assert survey(milestone("10:10:")).admits(snapshot("12:12:"), writers(10, 11))


def test_each_writer_must_show_not_only_the_greatest() -> None:
    early_xid_commits_late = snapshot("9:12:9")

    assert not survey(milestone("8:8:")).admits(early_xid_commits_late, writers(9, 11))


@pytest.mark.parametrize(
    "older",
    [
        pytest.param("10:14:", id="begun before the milestone"),
        pytest.param("9:15:9", id="with somebody in progress who had ended by then"),
    ],
)
def test_a_snapshot_older_than_all_milestones_is_not_admitted(older: str) -> None:
    assert not survey(milestone("10:15:")).admits(snapshot(older), writers())


def test_an_older_milestone_will_do() -> None:
    younger, older = milestone("15:15:", age_ms=10), milestone("10:10:", age_ms=5_000)

    assert survey(older, younger).admits(snapshot("12:12:"), writers())


@pytest.mark.parametrize(
    ("losses", "age_ms"),
    [
        pytest.param("run:1:begin", 100, id="something was evicted since"),
        pytest.param("run:0:other", 100, id="everything was flushed since"),
        pytest.param("other:0:begin", 100, id="it was restarted since"),
        pytest.param("run:0:begin", OLDEST_MS, id="writers may be forgotten by time"),
        pytest.param("run:0:begin", -1, id="its clock went back"),
    ],
)
def test_a_milestone_after_which_a_writer_may_have_been_lost_does_not_count(
    losses: str, age_ms: int
) -> None:
    lost = milestone("10:10:", losses=losses, age_ms=age_ms)

    assert not survey(lost).admits(snapshot("12:12:"), writers())


def test_writers_too_many_to_know_admit_nobody() -> None:
    step = Acquire((Ask("price"),), "me", with_writers=True)
    few, many = (
        [[2, [b"%d" % xid for xid in range(10, 10 + count)]]]
        for count in (WRITERS_MAX, WRITERS_MAX + 1)
    )

    assert answer_to(step, few) == [Granted(writers(*range(10, 10 + WRITERS_MAX)))]
    assert answer_to(step, many) == [Granted(None)]
    assert not survey(milestone("10:10:")).admits(snapshot("5000:5000:"), None)


def test_a_standby_shows_for_certain_what_is_older_than_all_in_progress() -> None:
    seen = seen_for_certain(snapshot("10:20:"), is_standby=True)

    assert seen.shows(Xid(9))
    assert not seen.shows(Xid(10))
    assert seen_for_certain(snapshot("10:20:"), is_standby=False).shows(Xid(10))


def test_milestones_are_kept_apart_and_the_newest_always() -> None:
    kept: tuple[Milestone, ...] = ()
    for server_ms in range(0, 60_000, 50):
        kept = Survey(server_ms, "same", kept).with_milestone(snapshot("10:10:"))

    ages = [59_950 - each.server_ms for each in kept]
    assert ages[-1] == 0
    assert OLDEST_MS - 2_600 <= ages[0] < OLDEST_MS
    assert len(kept) < 30


def test_milestones_of_lost_keys_are_not_kept() -> None:
    before = milestone("10:10:", losses="run:0:other")

    [kept] = survey(before).with_milestone(snapshot("11:11:"))

    assert kept.snapshot == snapshot("11:11:")


def test_what_nobody_of_us_has_written_is_silence() -> None:
    with pytest.raises(CacheSilence):
        survey_in([NOW, b"run:0", b"begin\nnonsense"])
    with pytest.raises(CacheSilence):
        answer_to(Acquire((Ask("price"),), "me", with_writers=True), [[2, [b"nonsense"]]])
