"""Payloads of every version of every event that was ever stored, in files beside the tests."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datapatterns.event_sourcing import EventTypes, NewEvent, RecordedEvent
from datapatterns.event_sourcing.evolution.event_types import EVENT_TYPES
from datapatterns.testing.models.stored_form import stored_form


@dataclass(frozen=True, slots=True)
class StoredPayload:
    """The data of one event as it was stored once, in the shape of ``schema_version``."""

    event_type: str
    schema_version: int
    data: Mapping[str, Any]


def record_corpus(
    folder: str | Path, events: Iterable[object], *, types: EventTypes = EVENT_TYPES
) -> list[Path]:
    """Add what is stored of ``events`` today to the files in ``folder``; return those it wrote.

    Run it whenever an event is new or its version has risen, and commit the files: they are what
    `assert_upcasters` reads. There is one for each version of each event; nothing that is in one
    is ever changed.

    Args:
        folder: Created if it is not there.
        events: At least one of each class, better one of each form that it can have; or events
            that a store has returned, whatever their version.
        types: Where their classes are declared.

    Raises:
        EventDataError: One cannot be stored.
        EventTypeError: A class is not declared.
        SpecError: One comes back as something else.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[Path, list[Any]] = {}
    for event in events:
        payload = _payload(event, types)
        path = folder / _file_name(payload.event_type, payload.schema_version)
        payloads = found.setdefault(path, _payloads(path) if path.exists() else [])
        payloads.append(payload.data)
    changed = []
    for path, payloads in sorted(found.items()):
        text = _as_text(payloads)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            changed.append(path)
    return changed


def read_corpus(folder: Path) -> list[StoredPayload]:
    """Return the payloads in ``folder``, by event and version.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not there; write it by record_corpus")
    return sorted(
        (
            StoredPayload(*_event_and_version(path), data)
            for path in folder.glob("*.json")
            for data in _payloads(path)
        ),
        key=lambda payload: (payload.event_type, payload.schema_version),
    )


def _payload(event: object, types: EventTypes) -> StoredPayload:
    if isinstance(event, RecordedEvent | NewEvent):
        return StoredPayload(event.event_type, event.schema_version, event.data)
    stored = stored_form(event, types)
    return StoredPayload(stored.event_type, stored.schema_version, json.loads(stored.data))


def _file_name(event_type: str, schema_version: int) -> str:
    # A colon cannot be in the name of a file everywhere; a % is in no event's.
    return f"{event_type.replace(':', '%')}.v{schema_version}.json"


def _event_and_version(path: Path) -> tuple[str, int]:
    event_type, _, version = path.stem.rpartition(".v")
    return event_type.replace("%", ":"), int(version)


def _payloads(path: Path) -> list[Any]:
    payloads: list[Any] = json.loads(path.read_text(encoding="utf-8"))
    return payloads


def _as_text(payloads: list[Any]) -> str:
    # One line each, in the order they came, so that a diff shows what was added.
    lines = [json.dumps(p, ensure_ascii=False, sort_keys=True) for p in payloads]
    return "[\n" + ",\n".join(dict.fromkeys(lines)) + "\n]\n"
