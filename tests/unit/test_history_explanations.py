"""Witnesses are short, and a person can follow them in the recorded history."""

import pytest

from datapatterns.testing.histories import (
    HistoryEvent,
    InconsistentHistoryError,
    assert_consistent,
    check_history,
)
from tests.fixtures.histories import append, at_once, in_turn, ok, read, then, unknown

READ_SKEW = at_once(
    ok(append("x", 4)),
    ok(append("x", 5), append("y", 1)),
    ok(read("x", 4), read("y", 1)),
    ok(read("x", 4, 5)),
)


def explanation(history: list[HistoryEvent], anomaly: str) -> str:
    return check_history(history).anomalies[anomaly][0].explanation


def test_a_cycle_is_told_step_by_step() -> None:
    witness = check_history(READ_SKEW).anomalies["G-single"][0]

    assert witness.transactions == (2, 1)
    assert witness.explanation == (
        "T2 (process 2): read [4] from 'x', read [1] from 'y'\n"
        "T1 (process 1): append 5 to 'x', append 1 to 'y'\n"
        "- T2 read 'x' without T1's 5 (rw)\n"
        "- T2 read T1's 1 from 'y' (wr)\n"
        "a cycle: T2 → T1 → T2"
    )


def test_write_order_process_order_and_real_time_have_sentences_of_their_own() -> None:
    rewritten = at_once(ok(append("x", 1)), ok(append("x", 2)), ok(read("x", 2, 1)))
    after = then(in_turn(ok(append("x", 1)), ok(append("x", 2))), rewritten[4:])
    late = in_turn(ok(append("x", 1)), ok(append("x", 2)), ok(read("x", 2, 1)))
    forgotten = in_turn(ok(append("x", 1)), ok(read("x")), processes=[3, 3])

    assert not check_history(rewritten)
    assert "- T0 appended 1 to 'x' after T2's 2 (ww)" in explanation(late, "G0-realtime")
    assert "- T2 began after T0 had ended (realtime)" in explanation(late, "G0-realtime")
    assert "- T2 is what process 3 did after T0 (process)" in explanation(
        forgotten, "G-single-process"
    )
    assert "- T2 read 'x' without T0's 1, which nobody read (rw)" in explanation(
        forgotten, "G-single-process"
    )
    assert after


def test_the_shortest_cycle_comes_first() -> None:
    long_way = at_once(
        ok(append("a", 1), read("b", 1)),
        ok(append("b", 1), read("c", 1)),
        ok(append("c", 1), read("d", 1)),
        ok(append("d", 1), read("a", 1)),
    )
    short_way = at_once(ok(append("e", 1), read("f", 1)), ok(append("f", 1), read("e", 1)))

    found = check_history(then(long_way, short_way)).anomalies["G1c"]

    assert [len(witness.transactions) for witness in found] == [2, 4]


def test_a_cycle_that_can_take_a_short_cut_is_told_with_it() -> None:
    history = at_once(
        ok(append("a", 1), read("b", 1), read("c", 1)),
        ok(append("b", 1), read("c", 1)),
        ok(append("c", 1), read("a", 1)),
    )

    found = check_history(history).anomalies["G1c"]

    assert found[0].transactions in ((0, 2), (2, 0))


def test_appends_that_nobody_read_do_not_lengthen_a_cycle() -> None:
    crowd = [ok(append("x", value)) for value in range(10, 20)]
    history = at_once(*crowd, ok(read("x"), append("y", 1)), ok(read("y"), append("x", 1)))

    assert check_history(history).anomalies["G2-item"][0].transactions == (10, 11)


def test_long_lists_and_long_transactions_are_shown_by_their_ends() -> None:
    history = in_turn(
        ok(*(append("x", value) for value in range(20))), ok(read("x", *range(20))), ok(read("x"))
    )

    story = explanation(history, "stale-read")

    assert "append 11 to 'x', … (20 operations)" in story
    assert "append 12" not in story
    assert "[… 16, 17, 18, 19] (20 values)" in str(
        check_history(at_once(ok(append("x", 1)), ok(read("x", *range(20)))))
    )


def test_a_transaction_of_unknown_outcome_is_marked() -> None:
    half = at_once(unknown(append("x", 1), append("y", 1)), ok(read("y"), read("x", 1)))

    assert "T0 (process 0, info): append 1 to 'x'" in explanation(half, "G-single")


def test_lost_updates_stale_reads_and_sessions_say_what_happened() -> None:
    lost = at_once(ok(read("x"), append("x", 1)), ok(read("x"), append("x", 2)))
    stale = in_turn(ok(append("x", 1)), ok(read("x")))
    shrunk = in_turn(ok(append("x", 1)), ok(read("x", 1)), ok(read("x")), processes=[0, 1, 1])
    forgotten = in_turn(ok(append("x", 1)), ok(read("x")), processes=[0, 0])

    assert "T0 and T1 both read [] from 'x' and appended to it: 1 and 2" in explanation(
        lost, "lost-update"
    )
    assert (
        "T2 read [] from 'x', but T0 had appended 1 and had been acknowledged before the read began"
    ) in explanation(stale, "stale-read")
    assert "process 1 read 1 values from 'x' in T2 and 0 in T4 afterwards" in explanation(
        shrunk, "non-monotonic-read"
    )
    assert ("process 0 appended 1 to 'x' in T0, and T2 of the same process read []") in explanation(
        forgotten, "read-your-writes-violation"
    )


def test_an_assertion_tells_the_whole_story() -> None:
    assert_consistent(READ_SKEW, model="read-committed")
    with pytest.raises(InconsistentHistoryError) as caught:
        assert_consistent(READ_SKEW, model="snapshot-isolation")

    message = str(caught.value)
    assert message.startswith("this is not snapshot-isolation: G-single in 4 transactions")
    assert "a cycle: T2 → T1 → T2" in message
    assert isinstance(caught.value, AssertionError)
    assert list(caught.value.report.anomalies) == ["G-single"]


def test_a_report_shows_in_an_assertion_of_pytest_what_it_found() -> None:
    assert repr(check_history(READ_SKEW)) == str(check_history(READ_SKEW))
    assert str(check_history([])) == "no anomaly in 0 transactions"


def test_no_more_witnesses_are_kept_than_asked_for() -> None:
    crowd = at_once(*(ok(read("x"), append("x", value)) for value in range(9)))

    report = check_history(crowd, limit=2)

    assert {len(found) for found in report.anomalies.values()} == {2}
    with pytest.raises(ValueError, match="0 witnesses"):
        check_history(crowd, limit=0)
