"""What a copy must not lose, reveal, or need: keys, persons, memory, the end of the file."""

import signal
import tracemalloc
from collections.abc import Iterator
from io import BytesIO, RawIOBase
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, text

from datapatterns.errors import CodecError, SubjectKeyError
from datapatterns.event_sourcing import (
    EventExport,
    EventStore,
    LinesImport,
    StoredEvents,
    StreamId,
    Subjects,
)
from datapatterns.event_sourcing.transfer.line_chunks import LineChunks
from datapatterns.testing import Databases, wait_until
from tests.fixtures import people
from tests.fixtures.commands import Run, ended, start
from tests.fixtures.empty_database import shown

pytestmark = pytest.mark.postgres
plain = EventStore()
ANN, BOB = StreamId("customer", "ann"), StreamId("customer", "bob")
EMAIL = "ann@confidential.example"


@pytest.fixture
def elsewhere(databases: Databases) -> Iterator[Engine]:
    with databases.lend() as url:
        engine = create_engine(url)
        yield engine
        engine.dispose()


def exported(engine: Engine) -> bytes:
    file = BytesIO()
    EventExport(StoredEvents(plain)).write(engine, file.write)
    return file.getvalue()


def register(engine: Engine, store: EventStore) -> None:
    with engine.begin() as conn:
        for stream, email in ((ANN, EMAIL), (BOB, "bob@example.com")):
            event = people.Registered(stream.key, email)
            store.append(conn, stream, [event], expected_version=0)


def copy_keys(engine: Engine, elsewhere: Engine) -> None:
    """Do what the page says: take the table of keys along."""
    with engine.begin() as source, elsewhere.begin() as target:
        rows = source.execute(text("SELECT * FROM datapatterns.subject_key")).mappings().all()
        for row in rows:
            names = ", ".join(map(str, row))
            values = ", ".join(f":{name}" for name in row)
            target.execute(
                text(f"INSERT INTO datapatterns.subject_key ({names}) VALUES ({values})"),  # noqa: S608
                dict(row),
            )


@pytest.mark.parametrize("store", [people.store, people.CODED], ids=["sealed", "and encoded"])
def test_personal_data_stay_encrypted_on_their_way_and_need_the_keys(
    engine: Engine, elsewhere: Engine, store: EventStore
) -> None:
    register(engine, store)

    lines = exported(engine)
    LinesImport(plain).run(elsewhere, BytesIO(lines))

    assert EMAIL.encode() not in lines
    with elsewhere.begin() as conn, pytest.raises(SubjectKeyError):
        store.read_stream(conn, ANN)
    copy_keys(engine, elsewhere)
    with elsewhere.begin() as conn:
        [event] = store.read_stream(conn, ANN)
    assert store.decode(event) == [people.Registered("ann", EMAIL)]


def test_who_was_forgotten_stays_forgotten(engine: Engine, elsewhere: Engine) -> None:
    register(engine, people.store)
    with engine.begin() as conn:
        Subjects(people.store).forget(conn, "ann")

    LinesImport(plain).run(elsewhere, BytesIO(exported(engine)))
    copy_keys(engine, elsewhere)

    with elsewhere.begin() as conn:
        [ann] = people.store.read_stream(conn, ANN)
        [bob] = people.store.read_stream(conn, BOB)
    assert ann.data["email"] == "[forgotten]"
    assert bob.data["email"] == "bob@example.com"


def test_a_copy_needs_no_codec_but_its_reader_does(engine: Engine, elsewhere: Engine) -> None:
    register(engine, people.CODED)
    LinesImport(plain).run(elsewhere, BytesIO(exported(engine)))

    with elsewhere.begin() as conn, pytest.raises(CodecError):
        plain.read_stream(conn, ANN)


class Lines(RawIOBase):
    """A file of very many events that is nowhere whole."""

    def __init__(self, count: int) -> None:
        self.left = count
        self.header = b'{"format":"datapatterns.events","format_version":1}\n'

    def readline(self, size: int | None = -1, /) -> bytes:
        del size
        if self.header:
            first, self.header = self.header, b""
            return first
        self.left -= 1
        data = b"x" * 1_000
        line = b'{"category":"a","key":"%d","type":"t","data":{"x":"%s"}}\n'
        return line % (self.left, data) if self.left >= 0 else b""


def test_the_length_of_a_file_takes_no_memory() -> None:
    chunks = LineChunks(Lines(20_000), keep_versions=True, chunk_events=100)  # type: ignore[arg-type] # reads lines
    tracemalloc.start()
    try:
        events = sum(len(chunk.events) for chunk in chunks)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert events == 20_000
    assert peak < 20_000 * 1_000 / 2  # less than half of what the file would be


def test_an_import_that_is_interrupted_leaves_whole_chunks_and_goes_on(
    run: Run, engine: Engine, tmp_path: Path
) -> None:
    at = ("--database-url", shown(engine.url))
    path = tmp_path / "lines"
    lines = [b'{"format":"datapatterns.events","format_version":1}\n']
    lines += [b'{"category":"a","key":"%d","type":"t","data":{}}\n' % (n % 3) for n in range(9)]
    path.write_bytes(b"".join(lines))
    command = ("events", "import", str(path), "--source", "s", "--chunk-events", "4", "--json")
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        " AND backend_type = 'client backend'"
    )
    with engine.begin() as conn:
        conn.execute(text("LOCK TABLE datapatterns.stream IN EXCLUSIVE MODE"))
        process = start(*command, *at, cwd=tmp_path)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as watcher:
            wait_until(lambda: bool(watcher.scalar(waiting)), deadline_seconds=60)
        process.send_signal(signal.SIGINT)
        ran = ended(process)

    assert (ran.code, "Interrupted" in ran.err) == (130, True), ran
    with engine.begin() as conn:
        assert plain.read_log(conn).events == []
    again = run(*command, *at)
    assert '"imported": 9' in again.out
