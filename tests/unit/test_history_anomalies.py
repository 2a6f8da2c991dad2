"""One small history for each anomaly, and for what looks like one but is none."""

import pytest

from datapatterns.testing.histories import check_history, verdict
from datapatterns.testing.histories.levels import ConsistencyModel
from tests.fixtures.histories import (
    append,
    at_once,
    in_turn,
    ok,
    read,
    rolled_back,
    then,
    unknown,
)

EXACTLY = {
    "write cycle": (
        at_once(
            ok(append("x", 1), append("y", 1)),
            ok(append("x", 2), append("y", 2)),
            ok(read("x", 1, 2), read("y", 2, 1)),
        ),
        {"G0"},
    ),
    "aborted read": (
        at_once(rolled_back(append("x", 1)), ok(read("x", 1))),
        {"G1a"},
    ),
    "intermediate read": (
        at_once(ok(append("x", 1), append("x", 2)), ok(read("x", 1)), ok(read("x", 1, 2))),
        {"G1b", "G-single"},
    ),
    "circular information flow": (
        at_once(ok(append("x", 1), read("y", 1)), ok(append("y", 1), read("x", 1))),
        {"G1c"},
    ),
    "circular information flow of Elle's paper": (
        at_once(
            ok(append("x", 1), read("y", 1)),
            ok(append("x", 2), append("y", 1)),
            ok(read("x", 1, 2)),
        ),
        {"G1c"},
    ),
    "circular information flow over an append that nobody read": (
        at_once(
            ok(append("x", 1), read("y", 1)), ok(append("x", 2), append("y", 1)), ok(read("x", 1))
        ),
        {"G1c", "G-single"},
    ),
    "write skew of three": (
        at_once(
            ok(read("x"), append("z", 1)),
            ok(append("x", 1), append("y", 1)),
            ok(read("y", 1), read("z")),
            ok(read("x", 1), read("z", 1)),
        ),
        {"G2-item"},
    ),
    "read skew": (
        at_once(ok(append("x", 1), append("y", 1)), ok(read("x"), read("y", 1)), ok(read("x", 1))),
        {"G-single"},
    ),
    "lost update": (
        at_once(ok(read("x"), append("x", 1)), ok(read("x"), append("x", 2)), ok(read("x", 1, 2))),
        {"G-single", "lost-update"},
    ),
    "append over a version that another wrote blindly": (
        at_once(
            ok(append("x", 1), read("x", 1)),
            ok(read("x"), append("x", 2)),
            ok(read("x", 1, 2)),
        ),
        {"G-single"},
    ),
    "lost update that nobody read": (
        at_once(ok(read("x"), append("x", 1)), ok(read("x"), append("x", 2))),
        {"G2-item", "lost-update"},
    ),
    "long fork": (
        at_once(
            ok(append("x", 1)),
            ok(append("y", 1)),
            ok(read("x", 1), read("y")),
            ok(read("x"), read("y", 1)),
        ),
        {"G-nonadjacent"},
    ),
    "write skew": (
        at_once(
            ok(read("x"), append("y", 1)),
            ok(read("y"), append("x", 1)),
            ok(read("x", 1), read("y", 1)),
        ),
        {"G2-item"},
    ),
    "write skew that nobody read": (
        at_once(ok(read("x"), append("y", 1)), ok(read("y"), append("x", 1))),
        {"G2-item"},
    ),
    "half of an unknown transaction": (
        at_once(
            unknown(append("x", 1), append("y", 1)), ok(read("x", 1)), ok(read("y"), read("x", 1))
        ),
        {"G-single"},
    ),
    "stale read": (
        in_turn(ok(append("x", 1)), ok(read("x")), ok(read("x", 1))),
        {"G-single-realtime", "stale-read"},
    ),
    "acknowledged append that nobody finds": (
        in_turn(ok(append("x", 1)), ok(read("x"))),
        {"G-single-realtime", "stale-read"},
    ),
    "append ordered before an older one": (
        then(
            in_turn(ok(append("x", 1)), ok(append("x", 2))),
            at_once(ok(), ok(), ok(read("x", 2, 1))),
        ),
        {"G0-realtime"},
    ),
    "read of what was not begun yet": (
        in_turn(ok(read("x", 1)), ok(append("x", 1))),
        {"G1c-realtime"},
    ),
    "long fork in time": (
        then(
            at_once(ok(append("x", 1)), ok(append("y", 1)), ok(read("x", 1), read("y"))),
            in_turn(ok(), ok(), ok(), ok(read("x"), read("y", 1))),
        ),
        {"G-nonadjacent", "stale-read", "G-single-realtime"},
    ),
    "write skew in time": (
        then(
            at_once(ok(read("x"), append("y", 1)), ok(), ok(append("z", 1))),
            at_once(ok(), ok(read("z"), append("x", 1))),
        ),
        {"G-single-realtime", "stale-read"},
    ),
    "own append not seen": (
        in_turn(ok(append("x", 1)), ok(read("x")), processes=[0, 0]),
        {"G-single-process", "read-your-writes-violation", "stale-read"},
    ),
    "list that shrinks": (
        then(
            at_once(ok(append("x", 1)), ok(append("x", 2)), ok(read("x", 1, 2))),
            in_turn(ok(read("x", 1)), processes=[2]),
        ),
        {"G-single-process", "non-monotonic-read", "stale-read"},
    ),
    "two orders of one list": (
        at_once(ok(append("x", 1)), ok(append("x", 2)), ok(read("x", 1)), ok(read("x", 2))),
        {"incompatible-order"},
    ),
    "own append not seen in the transaction": (
        at_once(ok(append("x", 1), read("x"))),
        {"internal"},
    ),
    "own append seen too early": (
        at_once(ok(read("x", 1), append("x", 1)), ok(read("x", 1))),
        {"internal"},
    ),
    "two reads of one transaction differ": (
        at_once(ok(append("x", 1)), ok(read("x"), read("x", 1))),
        {"internal", "G-single"},
    ),
    "second of two reads is of what was rolled back": (
        at_once(rolled_back(append("x", 1)), ok(read("x"), read("x", 1))),
        {"internal", "G1a"},
    ),
    "second of two reads is of what was not finished": (
        at_once(
            ok(append("x", 1), append("x", 2)),
            ok(read("x"), read("x", 1)),
            ok(read("x", 1, 2)),
        ),
        {"internal", "G1b", "G-single"},
    ),
    "circular information flow by the second of two reads": (
        at_once(
            ok(append("x", 1), read("y"), read("y", 1)),
            ok(append("y", 1), read("x"), read("x", 1)),
        ),
        {"internal", "G1c"},
    ),
    "lost update prevented by reading once more": (
        at_once(
            ok(append("x", 1)), ok(read("x"), read("x", 1), append("x", 2)), ok(read("x", 1, 2))
        ),
        {"internal", "G-single"},
    ),
    "dirty read of what was replaced": (
        in_turn(
            rolled_back(append("x", 1)), ok(read("x", 1)), ok(append("x", 2)), ok(read("x", 2))
        ),
        {"G1a", "incompatible-order"},
    ),
    "write order, and a dirty read as long as the versions": (
        then(
            in_turn(ok(append("x", 2)), ok(append("x", 3)), ok(read("x", 2, 3))),
            in_turn(rolled_back(append("x", 1)), ok(read("x", 1)), processes=[3, 3]),
        ),
        {"G1a", "incompatible-order"},
    ),
    "circular information flow over a dirty read": (
        at_once(
            rolled_back(append("x", 1)),
            ok(append("x", 2), read("y", 1)),
            ok(append("y", 1), read("x", 1, 2)),
            ok(read("x", 2)),
            ok(read("x", 2, 3)),
            ok(append("x", 3)),
            ok(read("x", 2, 3, 4)),
            ok(append("x", 4)),
        ),
        {"G1a", "G1c", "incompatible-order"},
    ),
    "unfinished half of an own append": (
        then(
            at_once(ok(append("x", 1), append("x", 2))),
            in_turn(ok(read("x", 1)), processes=[0]),
        ),
        {
            "G1b",
            "G-single",
            "read-your-writes-violation",
            "stale-read",
        },
    ),
    "value from nowhere": (at_once(ok(read("x", 9))), {"garbage-read"}),
    "value twice in a read that is not the longest": (
        at_once(
            ok(append("x", 1)),
            ok(append("x", 2)),
            ok(append("x", 3)),
            ok(read("x", 1, 1)),
            ok(read("x", 1, 2, 3)),
        ),
        {"duplicate-elements", "incompatible-order"},
    ),
    "value twice": (at_once(ok(append("x", 1)), ok(read("x", 1, 1))), {"duplicate-elements"}),
}

NOTHING = {
    "nothing": [],
    "concurrent read of an old version": at_once(
        ok(append("x", 1)), ok(read("x")), ok(read("x", 1))
    ),
    "unknown append, seen": at_once(unknown(append("x", 1)), ok(read("x", 1))),
    "unknown append, not seen": at_once(unknown(append("x", 1)), ok(read("x"))),
    "unknown append, seen late": in_turn(unknown(append("x", 1)), ok(read("x")), ok(read("x", 1))),
    "rolled-back append, not seen": in_turn(rolled_back(append("x", 1)), ok(read("x"))),
    "own appends": at_once(ok(read("x"), append("x", 1), append("x", 2), read("x", 1, 2))),
    "own append after others'": in_turn(
        ok(append("x", 1)), ok(append("x", 2), read("x", 1, 2)), ok(read("x", 1, 2))
    ),
    "appends that nobody read": at_once(
        *(ok(append("x", value), append("y", value)) for value in range(9))
    ),
    "read and append that nobody read": at_once(ok(read("x"), append("x", 1))),
}


@pytest.mark.parametrize("name", EXACTLY)
def test_a_history_gets_the_names_of_its_anomalies_and_no_other(name: str) -> None:
    history, expected = EXACTLY[name]

    assert set(check_history(history).anomalies) == expected


@pytest.mark.parametrize("name", NOTHING)
def test_what_some_order_explains_is_no_anomaly(name: str) -> None:
    assert not check_history(NOTHING[name])


@pytest.mark.parametrize(
    ("name", "lowest"),
    [
        ("value from nowhere", "read-uncommitted"),
        ("write cycle", "read-uncommitted"),
        ("aborted read", "read-committed"),
        ("dirty read of what was replaced", "read-committed"),
        ("second of two reads is of what was rolled back", "read-committed"),
        ("second of two reads is of what was not finished", "read-committed"),
        ("circular information flow by the second of two reads", "read-committed"),
        ("two reads of one transaction differ", "snapshot-isolation"),
        ("circular information flow", "read-committed"),
        ("read skew", "snapshot-isolation"),
        ("lost update", "snapshot-isolation"),
        ("long fork", "snapshot-isolation"),
        ("write skew", "serializable"),
        ("own append not seen", "strong-session-serializable"),
        ("stale read", "strict-serializable"),
    ],
)
def test_a_level_forbids_its_anomalies_and_those_of_the_levels_below(
    name: str, lowest: ConsistencyModel
) -> None:
    rising: list[ConsistencyModel] = [
        "read-uncommitted",
        "read-committed",
        "snapshot-isolation",
        "serializable",
        "strong-session-serializable",
        "strict-serializable",
    ]

    refused = [model for model in rising if verdict(EXACTLY[name][0], model=model)]

    assert refused == rising[rising.index(lowest) :]


def test_strong_snapshot_isolation_allows_write_skew_and_no_stale_read() -> None:
    skew, stale, forgotten = (
        EXACTLY[name][0] for name in ("write skew", "stale read", "own append not seen")
    )

    assert not verdict(skew, model="strong-snapshot-isolation")
    assert verdict(stale, model="strong-snapshot-isolation")
    assert not verdict(stale, model="strong-session-snapshot-isolation")
    assert verdict(forgotten, model="strong-session-snapshot-isolation")


def test_an_unknown_level_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"'repeatable' is none of .*strict-serializable"):
        verdict([], model="repeatable")  # type: ignore[arg-type]
