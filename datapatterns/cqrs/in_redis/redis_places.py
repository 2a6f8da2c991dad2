"""How places are written to Redis and read from it; without a client."""

from collections.abc import Mapping
from typing import Any

from datapatterns.cqrs.in_redis.redis_checkpoint import decoded, is_of_another_type
from datapatterns.cqrs.in_redis.redis_keys import KINDS, Place, Structure


def command_for(place: Place, value: str | None, index: str) -> tuple[str, str, str, str]:
    """Return what gives a place its value, as the script takes it.

    Args:
        place: Which place.
        value: None to empty it.
        index: Which of the script's keys its structure is.
    """
    match place.kind, value:
        case "zset", None:
            return "ZREM", index, place.field, ""
        case "zset", score:
            return "ZADD", index, str(score), place.field
        case _, None:
            return "HDEL", index, place.field, ""
        case _, text:
            return "HSET", index, place.field, str(text)


def stored_text(kind: str, value: Any) -> str:  # noqa: ANN401 -- bytes, text or a score
    """Return what a place of this kind holds, as it was put there."""
    return str(int(value)) if kind == "zset" else decoded(value)


def content_of(structure: Structure, answer: Any) -> dict[str, str]:  # noqa: ANN401 -- as asked
    """Return what a structure holds; of one that is none of ours, only that it is none."""
    if is_of_another_type(answer) or structure.kind not in KINDS:
        return {"": f"not ours: {decoded(answer)}"}
    places: Mapping[Any, Any] = dict(answer)
    return {decoded(field): stored_text(structure.kind, value) for field, value in places.items()}
