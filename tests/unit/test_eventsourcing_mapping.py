"""What events of the library `eventsourcing` become here, without a database."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from datapatterns.errors import SourceEventError
from datapatterns.event_sourcing import EventsourcingMapping, StreamId
from datapatterns.event_sourcing.transfer.eventsourcing_conversion import (
    Conversion,
    Converted,
    in_chunks,
)
from datapatterns.event_sourcing.transfer.eventsourcing_mapping import SourceEvent

DOG = UUID("6f2f7b0a-3f57-4d4b-8a3e-0d2f5d6c1f11")
BEGIN = datetime(2024, 5, 1, 12, tzinfo=UTC)


def transcoded(name: str, data: object) -> dict[str, object]:
    return {"_type_": name, "_data_": data}


def row(
    version: int = 1,
    *,
    of: UUID | str = DOG,
    topic: str | None = "kennel.domain:Dog.TrickAdded",
    at: object = None,
    state: bytes | None = None,
    **fields: object,
) -> SourceEvent:
    moment = (BEGIN + timedelta(seconds=version)).isoformat() if at is None else at
    made = {"timestamp": transcoded("datetime_iso", moment), **fields}
    return SourceEvent(of, version, topic, state or json.dumps(made).encode(), version)


def converted(*rows: SourceEvent, **options: Any) -> list[Converted]:  # noqa: ANN401
    mapping = options.pop("mapping", EventsourcingMapping())
    return list(Conversion(mapping, **options).converted(rows, _raise))


def _raise(problem: SourceEventError) -> None:
    raise problem


@pytest.mark.parametrize(
    ("topic", "name"),
    [
        ("kennel.domain:Dog.TrickAdded", "dog.trick_added"),
        ("kennel:HTTPServer.SSLRenewed2Times", "http_server.ssl_renewed2_times"),
        ("tests.x:test_it.<locals>.Dog.Named", "dog.named"),
        ("order-created", "order-created"),
        ("kennel:Opened", "opened"),
    ],
)
def test_a_topic_becomes_a_type_in_the_words_of_its_classes(topic: str, name: str) -> None:
    assert EventsourcingMapping().event_type(row(topic=topic)) == name


def test_the_stream_is_that_of_the_aggregate_even_if_other_classes_declare_its_events() -> None:
    begun = row(1, topic="kennel:Animal.Created", originator_topic="kennel:Dog")
    then = row(2, topic="kennel:Animal.Named")

    assert {each.stream for each in converted(begun, then)} == {StreamId("dog", str(DOG))}


def test_without_the_aggregate_the_stream_is_that_of_its_first_event() -> None:
    first, second = converted(row(1), row(2, topic="kennel:Walk.Taken"))
    [named] = converted(row(of="rex"), mapping=EventsourcingMapping(tenant="north"))

    assert first.stream == second.stream == StreamId("dog", str(DOG))
    assert named.stream == StreamId("dog", "rex", "north")


def test_values_of_other_types_become_text_and_bookkeeping_is_left_out() -> None:
    fields: dict[str, Any] = {
        "id": transcoded("uuid_hex", DOG.hex),
        "price": transcoded("decimal_str", "1.50"),
        "seen": [transcoded("datetime_iso", "2024-01-01T00:00:00+00:00")],
        "nested": {"_type_": "x", "more": 1, "_data_": 2},
        "class_version": 3,
        "originator_topic": "kennel:Dog",
    }

    [found] = converted(row(**fields))

    assert json.loads(found.event.data) == {
        "id": str(DOG),
        "price": "1.50",
        "seen": ["2024-01-01T00:00:00+00:00"],
        "nested": {"_type_": "x", "more": 1, "_data_": 2},
    }
    assert found.event.schema_version == 3
    assert found.recorded_at == BEGIN + timedelta(seconds=1)
    assert json.loads(found.event.meta or "") == {
        "eventsourcing": {"topic": "kennel.domain:Dog.TrickAdded", "notification_id": 1}
    }


def test_times_without_a_zone_are_given_one() -> None:
    mapping = EventsourcingMapping(transcodings={"datetime_iso": lambda at: f"{at}+02:00"})

    state = row(at="2024-05-01T12:00:00").state
    [found] = converted(row(state=state), mapping=mapping)

    assert found.recorded_at == datetime(2024, 5, 1, 10, tzinfo=UTC)


def test_an_event_has_the_same_id_each_time_and_another_than_every_other() -> None:
    rows = [row(1), row(2), row(1, of="rex"), row(11, of="re"), row(1, of="re/1")]
    ids = [converted(each, close_gaps=True)[0].event.event_id for each in rows]

    assert ids == [converted(each, close_gaps=True)[0].event.event_id for each in rows]
    assert len(set(ids)) == len(rows)


def test_the_mapping_can_say_all_of_it() -> None:
    mapping = EventsourcingMapping(
        types={"kennel.domain:Dog.TrickAdded": "trick.learned"},
        categories={"kennel.domain:Dog": "hound"},
        change=lambda topic, data: {**data, "topic": topic, "far": str(data["far"])},
        decode_state=lambda state: state[::-1],
        transcodings={"point": lambda data: {"x": data[0]}},
    )
    state = row(far=2**70, at_=transcoded("point", [1, 2])).state or b""

    [found] = converted(row(state=state[::-1]), mapping=mapping)

    assert (found.event.name, str(found.stream)) == ("trick.learned", f"hound-{DOG}")
    assert json.loads(found.event.data) == {
        "far": str(2**70),
        "at_": {"x": 1},
        "topic": "kennel.domain:Dog.TrickAdded",
    }


@pytest.mark.parametrize(
    ("bad", "advice"),
    [
        (row(topic=None), "it has no topic"),
        (row(topic="kennel:1"), "give types={topic: name}"),
        (row(state=b"\x00gzip"), "Give decode_state"),
        (row(state=b"[]"), "its state cannot be read (TypeError)"),
        (row(state=b'{"a": 1}'), "its state cannot be read (KeyError)"),
        (row(a=float("nan")), "its state cannot be read"),
        (row(at="2024-01-01T00:00:00"), "its timestamp has no time zone"),
        (row(a=transcoded("point", 1)), "give transcodings={'point': function}"),
        (row(a=2**70), "change=function can mend it"),
        (row(class_version=0), "schema version 0"),
        (row(of=""), "the key of a stream is empty"),
        (row(topic="kennel:1.Opened"), "give types"),
        (row(originator_topic="kennel:1"), "give categories={'kennel:1': name}"),
    ],
)
def test_what_cannot_be_imported_is_named_with_the_way_out(bad: SourceEvent, advice: str) -> None:
    with pytest.raises(SourceEventError) as refused:
        converted(bad)

    assert refused.value.event == str(bad)
    assert advice in str(refused.value)


def test_two_topics_do_not_become_one_type_by_accident() -> None:
    rows = [row(1, topic="a:Dog.Named"), row(2, topic="b:Dog.Named")]
    named = {"a:Dog.Named": "dog.named", "b:Dog.Named": "dog.named"}

    with pytest.raises(SourceEventError, match=r"it would have the type dog\.named, as a:Dog"):
        converted(*rows)
    assert len(converted(*rows, mapping=EventsourcingMapping(types=named))) == 2


def test_what_the_mapping_leaves_out_is_counted_and_leaves_no_gap() -> None:
    mapping = EventsourcingMapping(types={"kennel:Dog.Barked": None})
    conversion = Conversion(mapping)
    rows = [
        row(1, topic="kennel:Dog.Barked", originator_topic="kennel:Hound"),
        row(2),
        row(3, topic="kennel:Dog.Barked"),
        row(4),
    ]

    found = list(conversion.converted(rows, _raise))

    assert [(str(each.stream), each.version) for each in found] == [
        (f"hound-{DOG}", 1),
        (f"hound-{DOG}", 2),
    ]
    assert conversion.tally.left_out == {"kennel:Dog.Barked": 2}


def test_a_gap_is_refused_unless_it_is_closed() -> None:
    with pytest.raises(SourceEventError, match="events 2 to 3 before it are missing"):
        converted(row(1), row(4))
    with pytest.raises(SourceEventError, match="events 1 to 1 before it are missing"):
        converted(row(2))
    with pytest.raises(SourceEventError, match="it comes after event 2; read stream by stream"):
        converted(row(1), row(2), row(1))

    assert [each.version for each in converted(row(2), row(5), close_gaps=True)] == [1, 2]


def test_times_never_go_back_inside_a_stream() -> None:
    early = (BEGIN - timedelta(days=1)).isoformat()
    conversion = Conversion(EventsourcingMapping())
    other = uuid4()

    found = list(
        conversion.converted([row(1), row(2, at=early), row(1, of=other, at=early)], _raise)
    )

    assert found[1].recorded_at == found[0].recorded_at
    assert found[2].recorded_at < found[0].recorded_at
    assert conversion.tally.moved == 1


def test_stream_by_stream_only_one_stream_is_remembered() -> None:
    conversion = Conversion(EventsourcingMapping(), by_stream=True)
    rows = [row(version, of=f"dog {n}") for n in range(5) for version in (1, 2)]

    found = list(conversion.converted(rows, _raise))

    assert (len(found), conversion.tally.streams, len(conversion._streams)) == (10, 5, 1)  # noqa: SLF001


def test_chunks_that_were_imported_have_their_size_again() -> None:
    found = converted(*[row(version) for version in range(1, 11)])

    def sizes(before: dict[int, int]) -> list[int]:
        return [len(chunk.events) for chunk in in_chunks(found, before, chunk_events=4)]

    assert sizes({}) == [4, 4, 2]
    assert sizes({1: 3, 2: 1}) == [3, 1, 4, 2]
    assert [chunk.versions for chunk in in_chunks(found, {1: 3}, chunk_events=9)] == [
        {found[0].stream: 3},
        {found[0].stream: 10},
    ]
