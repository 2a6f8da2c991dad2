"""What a snapshot shows, in numbers that no test database reaches."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapatterns.change_log import ChangeToken, Snapshot, Xid
from datapatterns.change_log.snapshots import XID_MAX

xids = st.integers(3, XID_MAX)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    xmin, xmax = sorted(draw(st.tuples(xids, xids)))
    running = draw(st.sets(st.integers(xmin, xmax - 1), max_size=5)) if xmin < xmax else set()
    return Snapshot(Xid(xmin), Xid(xmax), tuple(Xid(xid) for xid in sorted(running)))


@given(snapshot=snapshots())
def test_a_snapshot_is_written_and_read_as_postgresql_does(snapshot: Snapshot) -> None:
    assert Snapshot.parse(str(snapshot)) == snapshot


def test_it_shows_what_had_ended() -> None:
    snapshot = Snapshot.parse("10:20:12,14")

    shown = [xid for xid in range(8, 23) if snapshot.shows(Xid(xid))]

    assert shown == [8, 9, 10, 11, 13, 15, 16, 17, 18, 19]


few_xids = st.integers(3, 12)


@st.composite
def small_snapshots(draw: st.DrawFn) -> Snapshot:
    xmin, xmax = sorted(draw(st.tuples(few_xids, few_xids)))
    running = draw(st.sets(st.integers(xmin, xmax - 1), max_size=3)) if xmin < xmax else set()
    return Snapshot(Xid(xmin), Xid(xmax), tuple(Xid(xid) for xid in sorted(running)))


@given(one=small_snapshots(), other=small_snapshots())
def test_it_shows_all_of_another_if_there_is_nothing_that_only_that_shows(
    one: Snapshot, other: Snapshot
) -> None:
    shown_by_other = [xid for xid in map(Xid, range(14)) if other.shows(xid)]
    shows_all = all(map(one.shows, shown_by_other))

    # PostgreSQL's xmax follows upon one that has ended; without that, one more is refused.
    if other.shows(Xid(other.xmax - 1)):
        assert one.shows_all_of(other) == shows_all
    else:
        assert shows_all or not one.shows_all_of(other)


@given(snapshot=snapshots(), xid=xids, other=xids)
def test_without_a_transaction_it_hides_that_one_alone(
    snapshot: Snapshot, xid: int, other: int
) -> None:
    without = snapshot.without(Xid(xid))

    assert not without.shows(Xid(xid))
    assert without.xmin <= without.xmax
    if other != xid:
        assert without.shows(Xid(other)) == snapshot.shows(Xid(other))


@given(system_identifier=st.integers(0, 2**63), xid=xids)
def test_a_token_survives_a_cookie(system_identifier: int, xid: int) -> None:
    token = ChangeToken(system_identifier, Xid(xid))

    assert ChangeToken.parse(str(token)) == token


@pytest.mark.parametrize("text", ["", "1", "1:", "a:b", "1:2:3", " 1:2", "1:2\n", "1:٣", "9" * 99])
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a change token"):
        ChangeToken.parse(text)
