"""What is exported and imported elsewhere is what it was, but for its positions."""

import json
from collections.abc import Iterator
from io import BytesIO
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine

from datapatterns.event_sourcing import (
    ANY,
    Codecs,
    EventExport,
    EventStore,
    LinesImport,
    LogFilter,
    MessagePack,
    NewEvent,
    StoredEvents,
    StreamId,
)
from datapatterns.testing import Databases

pytestmark = pytest.mark.postgres

words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False, allow_infinity=False)
    | words
)
data = st.dictionaries(words, scalars | st.lists(scalars, max_size=3), max_size=3)
tags = st.lists(st.sampled_from(["a:1", "ß", "c"]), max_size=2, unique=True).map(tuple)
events = st.builds(
    NewEvent,
    st.sampled_from(["a.b", "c"]),
    data,
    schema_version=st.integers(1, 2),
    metadata=st.none() | data,
    tags=tags,
)
appends = st.lists(
    st.tuples(
        st.sampled_from(["cart", "order"]),
        st.sampled_from(["1", "ß", "\t\\N"]),
        st.booleans(),  # packed
        st.lists(events, min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=6,
)
packing = EventStore(codecs=Codecs(MessagePack()))
plain = EventStore()
numbers = count()


@pytest.fixture(scope="module")
def elsewhere(databases: Databases) -> Iterator[Engine]:
    with databases.lend() as url:
        engine = create_engine(url)
        yield engine
        engine.dispose()


def exported(engine: Engine, tenant: str) -> bytes:
    file = BytesIO()
    EventExport(StoredEvents(plain), LogFilter(tenant=tenant)).write(engine, file.write)
    return file.getvalue()


def without_positions(lines: bytes) -> list[dict[str, Any]]:
    parsed = [json.loads(line) for line in lines.splitlines()]
    return [{**line, "position": None} for line in parsed if "type" in line]


@given(appended=appends, chunk_events=st.integers(1, 9), cut=st.integers(0, 20))
@settings(deadline=None)
def test_an_import_of_an_export_is_the_identity_but_for_positions(
    module_engine: Engine,
    elsewhere: Engine,
    appended: list[tuple[str, str, bool, list[NewEvent]]],
    chunk_events: int,
    cut: int,
) -> None:
    tenant = f"run {next(numbers)}"
    for category, key, packed, batch in appended:
        with module_engine.begin() as conn:
            store = packing if packed else plain
            store.append(conn, StreamId(category, key, tenant), batch, expected_version=ANY)
    lines = exported(module_engine, tenant)
    into = LinesImport(plain, chunk_events=chunk_events)

    # An import that ends early changes nothing of what the next one does.
    part = lines.splitlines(keepends=True)
    if 0 < cut < len(part):
        with pytest.raises(Exception, match="line"):
            into.run(elsewhere, BytesIO(b"".join(part[:cut])))
    done = into.run(elsewhere, BytesIO(lines))

    before, after = (without_positions(x) for x in (lines, exported(elsewhere, tenant)))
    assert after == before
    assert done.events + done.repeated == sum(len(batch) for *_, batch in appended)
