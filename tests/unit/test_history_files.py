"""JSON lines that Elle reads, too; what is no history is refused with its line."""

import json
from pathlib import Path

import pytest

from datapatterns.errors import HistoryError
from datapatterns.testing.histories import (
    HistoryEvent,
    Recorder,
    check_history,
    dump_history,
    load_history,
)
from tests.fixtures.histories import SimulatedDatabase, append, in_turn, ok, read

INVOKE = '{"index":0,"process":0,"type":"invoke","f":"txn","value":[["append","x",1]]}'


def refusal(path: Path, *lines: str) -> HistoryError:
    path.write_bytes("\n".join(lines).encode(errors="surrogateescape"))
    with pytest.raises(HistoryError) as caught:
        load_history(path)
    return caught.value


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    database = SimulatedDatabase(seed=1)
    history = database.run(50)

    dump_history(history, tmp_path / "history.jsonl")

    assert load_history(tmp_path / "history.jsonl") == history


def test_a_line_has_the_keys_that_elle_reads(tmp_path: Path) -> None:
    recorder = Recorder(now_nanoseconds=lambda: 5)
    with recorder.client().transaction(planned=[("append", "x", 1), ("r", "x", None)]) as txn:
        txn.append("x", 1)
        txn.read("x", [1])

    recorder.dump(tmp_path / "history.jsonl")

    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    same = {"process": 0, "time": 5, "f": "txn"}
    assert lines == [
        {"index": 0, "type": "invoke", "value": [["append", "x", 1], ["r", "x", None]], **same},
        {"index": 1, "type": "ok", "value": [["append", "x", 1], ["r", "x", [1]]], **same},
    ]


def test_a_read_of_null_is_an_empty_list_as_in_elle(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text(
        '{"index":0,"process":0,"type":"invoke","f":"txn","value":[["r","x",null]]}\n'
        '{"index":1,"process":0,"type":"ok","f":"txn","value":[["r","x",null]]}\n'
    )

    assert not check_history(load_history(tmp_path / "history.jsonl"))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "truncated"),
        ("nonsense", "malformed"),
        ("[]", "Expected `object`"),
        ('{"index":1}', "missing required field `process`"),
        (INVOKE.replace("invoke", "begin"), "Invalid enum value 'begin'"),
        (INVOKE.replace("txn", "write"), "Invalid enum value 'write'"),
        (INVOKE.replace("append", "cas"), "Invalid enum value 'cas'"),
        (INVOKE.replace('"process":0', '"process":"nemesis"'), "Expected `int`, got `str`"),
        (INVOKE.replace('"x"', '["x"]'), "got `array`"),
        (INVOKE.replace('"x"', "null"), "got `null`"),
        (INVOKE.replace(",1]", ",true]"), "got `bool`"),
        (INVOKE.replace(",1]", ",1.5]"), "got `float`"),
        (INVOKE.replace(",1]", ",[1]]"), "is no value"),
        (INVOKE.replace(",1]", ",null]"), "is no value"),
        (INVOKE.replace(",1]", ",{}]"), "got `object`"),
        (INVOKE.replace("append", "r"), "is no list"),
        (INVOKE.replace('"append","x",1', '"r","x",[[1]]'), "got `array`"),
        (INVOKE.replace(",1]", "]"), "length 3"),
        (INVOKE.replace(",1]", f",{'9' * 5000}]"), "it is not an event"),
        ("[" * 100_000, "it is not an event"),
        (INVOKE.replace('"f"', '"other":' + "[" * 100_000 + ',"f"'), "recursion"),
        (INVOKE.replace('"x"', '"\udcff"'), "it is not an event"),
    ],
)
def test_what_is_no_event_is_refused_with_its_line(tmp_path: Path, line: str, reason: str) -> None:
    first = '{"index":0,"process":7,"type":"invoke","f":"txn","value":[]}'

    error = refusal(tmp_path / "history.jsonl", first, line, INVOKE)

    assert error.line == 2
    assert reason in str(error)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([(1, 0, "ok", [])], "has not invoked"),
        ([(1, 0, "invoke", []), (2, 0, "invoke", [])], "before its last call has ended"),
        ([(1, 0, "invoke", []), (2, 0, "info", None), (3, 0, "invoke", [])], "under a new number"),
        ([(1, 0, "invoke", []), (2, 0, "ok", []), (3, 0, "ok", [])], "has not invoked"),
        ([(1, 0, "invoke", []), (1, 0, "ok", [])], "index 1 comes after 1"),
        ([(1, 0, "invoke", []), (2, 0, "ok", None)], "must say what it did"),
        ([(1, 0, "invoke", [["r", "x", None]]), (2, 0, "ok", [])], "other operations"),
        (
            [(1, 0, "invoke", [["append", "x", 1]]), (2, 0, "ok", [["append", "x", 2]])],
            "other operations",
        ),
        (
            [(1, 0, "invoke", [["append", "x", 1]]), (2, 0, "info", [["append", "y", 1]])],
            "other operations",
        ),
    ],
)
def test_what_no_client_can_have_done_is_refused_at_its_line(
    tmp_path: Path, lines: list[tuple[int, int, str, object]], reason: str
) -> None:
    encoded = [
        json.dumps({"index": index, "process": process, "type": kind, "f": "txn", "value": value})
        for index, process, kind, value in lines
    ]

    error = refusal(tmp_path / "history.jsonl", *encoded)

    assert error.line == len(lines)
    assert reason in str(error)


def test_long_lines_and_long_files_are_refused_before_they_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    dump_history(in_turn(ok(append("x", 1)), ok(read("x", *range(1000)))), path)

    with pytest.raises(HistoryError, match="more than 200 bytes") as line_too_long:
        load_history(path, line_bytes_max=200)
    with pytest.raises(HistoryError, match="more than 3 events") as too_many:
        load_history(path, events_max=3)

    assert (line_too_long.value.line, too_many.value.line) == (4, 4)


def test_a_checked_history_need_not_come_from_a_file() -> None:
    twice = in_turn(ok(append("x", 1)), ok(append("x", 1)))
    unfinished = [HistoryEvent(0, 0, "ok", [])]

    with pytest.raises(HistoryError, match="a second time") as value:
        check_history(twice)
    with pytest.raises(HistoryError, match="has not invoked"):
        check_history(unfinished)

    assert (value.value.event, value.value.line) == (2, None)


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (("append", "x", [1]), r"it appends \[1\] to 'x', which is no value"),
        (("append", "x", None), "which is no value"),
        (("append", ["x"], 1), r"\['x'\] is no key"),
        (("r", ["x"], None), r"\['x'\] is no key"),
        (("r", "x", 5), "it reads 5 from 'x', which is no list"),
        (("r", "x", "ab"), "it reads 'ab' from 'x', which is no list"),
        (("w", "x", 1), "is neither an append nor a read"),
        (("append", "x"), "is neither an append nor a read"),
    ],
)
def test_what_is_no_operation_is_refused_wherever_it_comes_from(
    operation: object, reason: str
) -> None:
    history = [HistoryEvent(3, 0, "invoke", [operation])]  # type: ignore[list-item]

    with pytest.raises(HistoryError, match=reason) as caught:
        check_history(history)

    assert caught.value.event == 3


def test_an_event_of_no_known_type_is_refused() -> None:
    history = [HistoryEvent(0, 0, "invoke", []), HistoryEvent(1, 0, "done", [])]  # type: ignore[arg-type]

    with pytest.raises(HistoryError, match="'done' is no type of event"):
        check_history(history)


def test_operations_may_be_lists_as_json_has_them() -> None:
    planned, done = [["append", "x", 1], ["r", "x", None]], [("append", "x", 1), ("r", "x", [1])]
    history = [HistoryEvent(0, 0, "invoke", planned), HistoryEvent(1, 0, "ok", done)]  # type: ignore[arg-type]

    assert not check_history(history)
