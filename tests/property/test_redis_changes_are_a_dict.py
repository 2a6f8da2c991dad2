"""Whatever handlers change, Redis holds what a dict would, however the log is cut in pages."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis
from sqlalchemy import Engine

from datapatterns.cqrs import DELETE, Projections, RedisChanges, RedisProjection, on
from datapatterns.cqrs.in_redis.json_text import json_text, json_value
from datapatterns.cqrs.in_redis.redis_content import RedisContent
from datapatterns.cqrs.in_redis.redis_keys import RedisKeys
from datapatterns.event_sourcing import EventStore, RecordedEvent, event
from tests.fixtures.read_models import append_all

STORE = EventStore()

Command = tuple[str, str, Any]


@event("test.redis_changed")
@dataclass(frozen=True)
class Changed:
    """A command as text, for events refuse what Redis can hold."""

    command: str


def fold(document: Any, amount: Any) -> Any:  # noqa: ANN401 -- JSON
    """Depend on everything that was there before, and on the order."""
    if amount == 0:
        return DELETE
    if isinstance(document, dict):
        document["n"] = document.get("n", 0) * 3 + amount
        return document
    return {"before": document, "n": amount}


@dataclass
class Model:
    """The simplest thing that could be right."""

    hashes: dict[str, str] = field(default_factory=dict)
    scores: dict[str, int] = field(default_factory=dict)
    documents: dict[str, Any] = field(default_factory=dict)

    def carry_out(self, command: Command) -> None:
        name, key, amount = command
        if name == "update_json":
            after = fold(self.documents.pop(key, None), amount)
            if after is not DELETE:
                self.documents[key] = json_value(json_text(after))
            return
        change: Callable[[], object] = {
            "increment": lambda: self.hashes.update(
                {key: str(int(self.hashes.get(key, 0)) + amount)}
            ),
            "put": lambda: self.hashes.update({key: str(amount)}),
            "remove": lambda: self.hashes.pop(key, None),
            "drop": self.hashes.clear,
            "add_score": lambda: self.scores.update({key: self.scores.get(key, 0) + amount}),
            "set_score": lambda: self.scores.update({key: amount}),
            "remove_member": lambda: self.scores.pop(key, None),
            "drop_scores": self.scores.clear,
            "put_json": lambda: self.documents.update({key: json_value(json_text(amount))}),
            "remove_json": lambda: self.documents.pop(key, None),
            "drop_json": self.documents.clear,
        }[name]
        change()

    def places(self) -> dict[tuple[str, str], Any]:
        found: dict[tuple[str, str], Any] = {("hash", k): v for k, v in self.hashes.items()}
        found |= {("zset", k): v for k, v in self.scores.items()}
        return found | {("json", k): v for k, v in self.documents.items()}


def carry_out(changes: RedisChanges, command: Command) -> None:
    name, key, amount = command
    call: Callable[..., None] = getattr(changes, name)
    if name.startswith("drop"):
        call("s")
    elif name.startswith("remove"):
        call("s", key)
    elif name == "update_json":
        call("s", key, fold, amount)
    else:
        call("s", key, amount)


class Mirror(RedisProjection, version=1):
    @on(Changed)
    def _(self, changes: RedisChanges, e: Changed, _meta: RecordedEvent) -> None:
        name, key, amount = json.loads(e.command)
        carry_out(changes, (name, key, amount))


KEYS = st.sampled_from(["", "x", "å:{}*", "\0\n"])
NUMBERS = st.integers(-100, 100)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
).filter(lambda document: document is not None)
COUNTS = ["increment", "put", "add_score", "set_score", "update_json"]
EMPTIES = ["remove", "drop", "remove_member", "drop_scores", "remove_json", "drop_json"]
COMMANDS = st.one_of(
    st.tuples(st.sampled_from(COUNTS), KEYS, NUMBERS),
    st.tuples(st.just("put_json"), KEYS, JSON),
    st.tuples(st.sampled_from(EMPTIES), KEYS, st.just(0)),
)
SCRIPTS = st.lists(COMMANDS, min_size=5, max_size=40)


def cut(script: list[Command], sizes: list[int]) -> Iterator[list[Command]]:
    rest = list(script)
    for size in [*sizes, len(script) + 1]:
        page, rest = rest[:size], rest[size:]
        yield page


@given(SCRIPTS, st.lists(st.integers(1, 10), max_size=10))
def test_changes_are_those_of_a_dict_whatever_the_pages(
    script: list[Command], sizes: list[int]
) -> None:
    model, content = Model(), RedisContent()
    for command in script:
        model.carry_out(command)

    for page in cut(script, sizes):
        changes = RedisChanges()
        for command in page:
            carry_out(changes, command)
        content.take(changes.resolved(content.stored(changes.additions())))

    read: dict[str, Callable[[str], Any]] = {"hash": str, "zset": int, "json": json_value}
    found = {
        (place.kind, place.field): read[place.kind](value)
        for place, value in content.places().items()
    }
    assert found == model.places()


@pytest.mark.postgres
@pytest.mark.redis
@given(st.lists(SCRIPTS, min_size=1, max_size=4), st.data())
def test_redis_holds_what_a_dict_would_whatever_the_pages_and_the_losses(
    module_engine: Engine, redis_url: str, scripts: list[list[Command]], data: st.DataObject
) -> None:
    with Redis.from_url(redis_url) as client:
        projections = Projections(STORE, redis=client)
        model = Model()
        client.flushdb()
        with module_engine.begin() as conn:
            conn.exec_driver_sql("DELETE FROM datapatterns.projection_shard")
            conn.exec_driver_sql("DELETE FROM datapatterns.projection")
        begin = [
            Changed(json.dumps([name, "", 0])) for name in ("drop", "drop_scores", "drop_json")
        ]
        append_all(module_engine, STORE, begin)
        states: list[dict[bytes, bytes]] = [{}]
        for script in scripts:
            events: list[object] = [Changed(json.dumps(command)) for command in script]
            append_all(module_engine, STORE, events)
            for command in script:
                model.carry_out(command)
            size = data.draw(st.sampled_from([1, 2, 7, 50]), label="page")
            projections.run(module_engine, Mirror, pages_max=4, page_events=size)
            states.append({key: client.dump(key) or b"" for key in client.scan_iter()})
            if data.draw(st.booleans(), label="lose"):
                client.flushdb()
                for key, value in data.draw(st.sampled_from(states), label="back").items():
                    client.restore(key, 0, value)
        projections.catch_up(module_engine, Mirror)

        view = projections.view(Mirror)
        assert view.hash("s") == model.hashes
        assert dict(view.ranked("s")) == model.scores
        assert view.all_documents("s") == model.documents
        assert projections.verify(module_engine, Mirror).differences == []
        sizes = client.hgetall(RedisKeys("datapatterns", "mirror", 1).sizes)
        assert {bytes(k): int(v) for k, v in sizes.items()} == {
            kind: len(held)
            for kind, held in (
                (b"hash:s", model.hashes),
                (b"zset:s", model.scores),
                (b"json:s", model.documents),
            )
            if held
        }
