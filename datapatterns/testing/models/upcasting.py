"""Whether everything that was ever stored can still be read."""

from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path

from datapatterns.errors import EventShapeError
from datapatterns.event_sourcing import EventTypes
from datapatterns.event_sourcing.evolution.event_types import EVENT_TYPES
from datapatterns.purity import watched
from datapatterns.testing.models.corpus import StoredPayload, read_corpus
from datapatterns.testing.models.stored_form import stored_form
from datapatterns.testing.models.story import SpecError, told


def assert_upcasters(
    corpus: str | Path | Iterable[StoredPayload],
    *,
    events: Iterable[type] = (),
    types: EventTypes = EVENT_TYPES,
) -> int:
    """Check that old events can be read, today and in whatever order; return how many were.

    For each payload: an upcaster leads on from every version; it ends at the class of today, from
    whose own stored form nothing changes any more; a second reading gives the same, so an
    upcaster is no function of time or chance; and the payload is not changed by being read. The
    corpus must hold each version of each event that is in it, or in ``events``.

    Args:
        corpus: What `record_corpus` wrote, or payloads.
        events: Classes that must be in it.
        types: Where they are declared, with their upcasters.

    Raises:
        EventTypeError: A class is not declared.
        SpecError: One of these does not hold.
    """
    payloads = read_corpus(Path(corpus)) if isinstance(corpus, str | Path) else list(corpus)
    _check_complete(payloads, events, types)
    for payload in payloads:
        _check_reading(payload, types)
    return len(payloads)


def _check_complete(
    payloads: list[StoredPayload], events: Iterable[type], types: EventTypes
) -> None:
    versions: dict[str, set[int]] = {types.of(cls).name: set() for cls in events}
    for payload in payloads:
        version = payload.schema_version
        # What was stored under the old name need not have been stored under the new one.
        for name in (payload.event_type, types.named_today(payload.event_type, version)):
            versions.setdefault(name, set()).add(version)
    if not versions:
        raise SpecError("the corpus is empty; write it by record_corpus")
    missing = [
        f"{name} version {version}"
        for name, found in sorted(versions.items())
        for version in range(1, types.latest_version(name) + 1)
        if version not in found
    ]
    if missing:
        raise SpecError(
            "the corpus lacks versions that were stored",
            *[f"missing   {one}" for one in missing],
            "write them by record_corpus: today's from objects, older ones from a store's log",
        )


def _check_reading(payload: StoredPayload, types: EventTypes) -> None:
    before = deepcopy(payload.data)
    first = _read(payload, types)
    if payload.data != before:
        raise SpecError(
            "reading changes what is stored",
            *_source(before, payload),
            *told("left", [payload.data]),
        )
    second = _read(payload, types)
    if first != second:
        raise SpecError(
            "a second reading gives something else; upcasters depend on their data alone",
            *_source(before, payload),
            *told("first", first),
            *told("second", second),
        )
    for event in first:
        stored_form(event, types)  # the identity on the latest version


def _read(payload: StoredPayload, types: EventTypes) -> list[object]:
    calls: list[str] = []
    decode = watched(types.decode, calls.append)
    try:
        events = decode(payload.event_type, payload.schema_version, payload.data)
    except Exception as error:
        # An upcaster's own error says more than that it raised one.
        told_by = error.__cause__ or error
        reason = told_by.reason if isinstance(told_by, EventShapeError) else f"{told_by!r}"
        raise SpecError(
            "what was stored cannot be read", *_source(payload.data, payload), f"got       {reason}"
        ) from error
    if calls:  # what it gives may be the same all day
        raise SpecError(
            "upcasters depend on their data alone",
            *_source(payload.data, payload),
            f"it calls  {calls[0]}",
        )
    return events


def _source(data: object, payload: StoredPayload) -> list[str]:
    return [
        f"event     {payload.event_type} version {payload.schema_version}",
        *told("stored", [data]),
    ]
