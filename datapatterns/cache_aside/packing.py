"""Make of what was loaded what may be stored, and say why if that is nothing."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from time import time
from typing import Final, TypeVar

from datapatterns.cache_aside.codec import Codec
from datapatterns.cache_aside.counting import Counters
from datapatterns.cache_aside.policy import CachePolicy
from datapatterns.cache_aside.steps import Load, Loaded

T = TypeVar("T")

_UNLEASED: Final = "lease"


@dataclass(frozen=True, slots=True)
class Packer:
    """Packs values of one cache.

    Attributes:
        policy: The times to live by.
        counters: Are told of what is not stored, and why.
    """

    policy: CachePolicy
    counters: Counters

    def packed(
        self, codec: Codec[T], values: Sequence[T], step: Load, *, seconds: float, is_current: bool
    ) -> list[Loaded[T]]:
        """Return loaded values with the bytes of those that may be stored.

        Args:
            codec: What makes bytes of them.
            values: As they were loaded.
            step: What was asked for.
            seconds: How long it took for all of them.
            is_current: Whether they show whatever had been invalidated before the lease.
        """
        took_ms = seconds * 1000 / len(values)
        packed = []
        for value, stamps in zip(values, step.stamps, strict=True):
            canonical, payload = codec.canonical(value)
            raw, why = None, _obstacle(step, stamps, is_current=is_current)
            if why is None and stamps is not None:
                raw = codec.pack(
                    canonical,
                    payload,
                    took_ms=took_ms,
                    now_ms=time() * 1000,
                    policy=self.policy,
                    jitter=random.uniform(-1, 1),  # noqa: S311 -- spreads expiry
                    stamps=stamps,
                )
                why = "absent" if canonical is None else "size"
            if raw is None and why not in {None, _UNLEASED}:
                self.counters.add("unstored", why=str(why))
            packed.append(
                Loaded(canonical, None, 0)
                if raw is None
                else Loaded(canonical, raw.raw, raw.ttl_ms)
            )
        return packed


def _obstacle(step: Load, stamps: tuple[bytes, ...] | None, *, is_current: bool) -> str | None:
    """Return why nothing may be stored of what was loaded; None if it may."""
    if not step.leased:
        return _UNLEASED
    if not is_current:
        return "snapshot"
    return "fence" if stamps is None else None
