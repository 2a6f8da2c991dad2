"""Lines of JSON: what is an event, what is refused and why, and where chunks end."""

import gzip
import json
from io import BytesIO
from typing import Any

import pytest

from datapatterns.errors import EventLineError
from datapatterns.event_sourcing.transfer.json_lines import (
    LINE_BYTES_MAX,
    StoredEvent,
    encoded,
    read_header,
    read_line,
)
from datapatterns.event_sourcing.transfer.line_chunks import Chunk, LineChunks

HEADER = b'{"format":"datapatterns.events","format_version":1}\n'
EXPORTED = HEADER[:-2] + b',"export_id":"6f2f7b0a-3f57-4d4b-8a3e-0d2f5d6c1f11"}\n'
EVENT: dict[str, Any] = {"category": "door", "key": "1", "type": "door.opened", "data": {}}


def line(**changes: object) -> bytes:
    return json.dumps(EVENT | changes).encode() + b"\n"


def chunks(
    *lines: bytes, header: bytes = HEADER, size: int = 2, keep_versions: bool = True
) -> list[Chunk]:
    file = BytesIO(b"".join((header, *lines)))
    return list(LineChunks(file, keep_versions=keep_versions, chunk_events=size))


def sizes(found: list[Chunk]) -> list[int]:
    return [len(chunk.events) for chunk in found]


def test_a_line_needs_no_more_than_a_stream_a_type_and_data() -> None:
    event = read_line(line(), 2)

    assert isinstance(event, StoredEvent)
    assert (str(event.stream), event.schema_version, event.version) == ("door-1", 1, None)
    assert encoded(event).data == "{}"


def test_the_bytes_of_the_data_are_kept_but_for_what_copy_takes_for_an_end() -> None:
    raw = b'{"category":"a","key":"1","type":"t","data": {"x":\t1.50, "y":1e2,"x":2} }\r\n'
    event = read_line(raw, 2)

    assert isinstance(event, StoredEvent)
    assert encoded(event).data.strip() == '{"x": 1.50, "y":1e2,"x":2}'


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"category": "no category"}, "cannot name a category"),
        ({"key": ""}, "the key of a stream is empty"),
        ({"key": "a\0"}, "U+0000"),
        ({"key": 1}, "Expected `str`, got `int` - at `$.key`"),
        ({"type": "1"}, "cannot name a type of event"),
        ({"schema_version": 0}, "schema version 0"),
        ({"version": 0}, "version 0 is out of bounds"),
        ({"version": 2**63}, f"version {2**63} is out of bounds"),
        ({"tag": ["misspelt"]}, "unknown field `tag`"),
        ({"tags": ["a"] * 21}, "21 tags are too many"),
        ({"tags": ["a\n"]}, "cannot be a tag"),
        ({"id": "x"}, "UUID"),
        ({"at": "2026-01-01T00:00:00"}, "has no time zone"),
        ({"at": "yesterday"}, "at `$.at`"),
        ({"data": []}, "its data must be an object"),
        ({"data": None}, "without a codec it needs data"),
        ({"data": {"a": "\0"}}, "a holds U+0000"),
        ({"data": {"a": {"b": [float("nan")]}}}, "malformed"),
        ({"data": {"a": "x" * 1_048_577}}, "larger than"),
        ({"metadata": "m"}, "its metadata must be an object"),
        ({"payload": "AA=="}, "without a codec it needs data, and no payload"),
        ({"codec": 1}, "with a codec it needs a payload, and no data"),
        ({"codec": 1, "data": None, "payload": "*"}, "not base64"),
        ({"codec": 32_768, "data": None, "payload": ""}, "codec 32768 is out of bounds"),
    ],
)
def test_what_could_not_be_stored_is_refused_with_its_line_and_the_reason(
    changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(EventLineError) as refused:
        read_line(line(**changes), 7)

    assert refused.value.line == 7
    assert reason in str(refused.value)


def test_who_writes_lines_is_not_told_to_write_upcasters() -> None:
    with pytest.raises(EventLineError, match="its data cannot be read") as refused:
        read_line(line().replace(b"{}", b'{"n":1e999}'), 2)

    assert "upcaster" not in str(refused.value)


def test_what_editors_put_before_the_first_line_is_passed_over() -> None:
    assert read_header(b"\xef\xbb\xbf" + HEADER) == read_header(HEADER)


@pytest.mark.parametrize(
    "bad",
    [
        b'{"category":"a","key":"1","type":"t","data":{"a":"tab\tinside"}}\n',
        b'{"category":"a","key":"1","type":"t","data":{"a":"\\ud800"}}\n',
        b'{"category":"a","key":"1","type":"t","data":{"a":' + b"[" * 5_000 + b"}}\n",
        b'{"category":"a","key":"1","type":"t"\n',
        b"\xff\n",
        b"\n",
        b'{"checkpoint":"x","events":1}\n',
        line()[:-1],
    ],
)
def test_what_is_no_whole_line_of_json_is_refused(bad: bytes) -> None:
    with pytest.raises(EventLineError):
        read_line(bad, 2)


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (b"", "it is no header"),
        (line(), "it is no header"),
        (b'{"format":"csv","format_version":1}\n', "the format is not datapatterns.events"),
        (HEADER.replace(b":1}", b":2}"), "upgrade the library"),
        (HEADER.decode().encode("utf-16"), "write it in UTF-8"),
        (gzip.compress(HEADER, mtime=0), "a name that ends with .gz"),
        (b"\x28\xb5\x2f\xfd\x04", "unpack it"),
    ],
)
def test_a_file_without_a_known_header_is_refused(first: bytes, reason: str) -> None:
    with pytest.raises(EventLineError, match="line 1: ") as refused:
        read_header(first)

    assert reason in str(refused.value)


def test_chunks_end_when_they_are_full_and_at_checkpoints() -> None:
    end = b'{"checkpoint":9,"events":3}\n'

    assert sizes(chunks(*[line()] * 5)) == [2, 2, 1]
    assert sizes(chunks(*[line()] * 3, end, *[line()] * 3)) == [2, 1, 2, 1]
    assert sizes(chunks(*[line()] * 3, end, header=EXPORTED)) == [2, 1]


def test_the_chunks_of_a_file_that_grew_begin_with_those_it_had() -> None:
    """The promise that a continued export can be imported again."""
    lines = [line(key=str(n)) for n in range(3)]
    first = b'{"checkpoint":9,"events":3}\n'
    more = [line(key="new"), b'{"checkpoint":12,"events":4}\n']

    before = chunks(*lines, first, header=EXPORTED)
    after = chunks(*lines, first, *more, header=EXPORTED)

    assert [chunk.versions for chunk in after[: len(before)]] == [c.versions for c in before]


def test_a_chunk_has_a_bound_in_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datapatterns.event_sourcing.transfer.line_chunks.CHUNK_BYTES", 3_000)

    assert sizes(chunks(*[line(data={"a": "x" * 1_000})] * 5, size=1_000)) == [3, 2]


def test_lines_that_are_gone_are_noticed_at_the_checkpoint() -> None:
    with pytest.raises(EventLineError, match="line 4: there are 2 events above it"):
        chunks(line(), line(), b'{"checkpoint":9,"events":3}\n')


def test_an_export_that_broke_off_is_noticed_before_its_last_chunk() -> None:
    found = iter(LineChunks(BytesIO(EXPORTED + line() * 3), keep_versions=True, chunk_events=2))

    assert len(next(found).events) == 2
    with pytest.raises(EventLineError, match="line 4: it is the last, but no checkpoint"):
        next(found)


def test_versions_of_a_stream_that_do_not_follow_each_other_are_refused_unless_given_up() -> None:
    gap = [line(version=1), line(version=3), line(version=4)]

    with pytest.raises(EventLineError, match="line 3: version 3 of door-1 follows version 1"):
        chunks(*gap, size=9)
    assert sizes(chunks(*gap, size=9, keep_versions=False)) == [3]
    assert sizes(chunks(line(version=1), line(key="2", version=1), line(version=2), size=9)) == [3]


def test_a_check_goes_on_after_a_bad_line_and_counts_it() -> None:
    problems: list[EventLineError] = []
    lines = [line(), b"{\n", line(key=""), line(), b'{"checkpoint":9,"events":4}\n']
    file = BytesIO(EXPORTED + b"".join(lines))

    found = list(LineChunks(file, keep_versions=True, chunk_events=9, note=problems.append))

    assert sizes(found) == [2]
    assert [problem.line for problem in problems] == [3, 4]


def test_a_check_that_counts_other_lines_does_not_call_the_export_unfinished() -> None:
    problems: list[EventLineError] = []
    file = BytesIO(EXPORTED + line() + b'{"checkpoint":9,"events":2}\n')

    list(LineChunks(file, keep_versions=True, chunk_events=9, note=problems.append))

    assert ["lines are missing" in problem.reason for problem in problems] == [True]


def test_times_are_given_to_all_events_of_a_chunk_or_to_none() -> None:
    mixed = [line(at="2024-01-01T00:00:00Z"), line()]

    with pytest.raises(EventLineError, match=r"line 3: .* some have a time"):
        chunks(*mixed)
    with pytest.raises(EventLineError, match=r"line 3: .* some have a time"):
        chunks(*reversed(mixed))
    assert sizes(chunks(*mixed, size=1)) == [1, 1]


def test_a_line_without_end_does_not_fill_the_memory() -> None:
    class Endless(BytesIO):
        largest = 0

        def readline(self, size: int | None = -1, /) -> bytes:
            Endless.largest = max(Endless.largest, size or -1)
            return super().readline(size)

    file = Endless(HEADER + b"x" * (LINE_BYTES_MAX + 10))
    with pytest.raises(EventLineError, match="line 2: it is longer than"):
        list(LineChunks(file, keep_versions=True, chunk_events=9))

    assert Endless.largest == LINE_BYTES_MAX
