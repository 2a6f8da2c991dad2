"""How a statement for all shards treats those that do not answer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from datapatterns.errors import SettingsError

Partial = Literal["raise", "allow"]


@dataclass(frozen=True, slots=True)
class AllShards:
    """Lets a statement go to all shards, and says what to do about those that do not answer.

    Given as ``execution_options(shard=AllShards(...))``.

    Attributes:
        partial: ``raise`` an error; or ``allow`` an answer without them, whose ``missing_shards``
            names them.
        timeout_seconds: After so long a shard counts as one that does not answer; None to wait.

    Raises:
        SettingsError: There is no such policy, or the time cannot be kept.
    """

    partial: Partial = "raise"
    timeout_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.partial not in get_args(Partial):
            raise SettingsError("partial", f"{self.partial!r} is none of {get_args(Partial)}")
        if self.timeout_seconds is not None and not 0.001 <= self.timeout_seconds <= 86_400:  # noqa: PLR2004 -- as the text says
            raise SettingsError("timeout_seconds", "a statement may take 0.001 to 86400 s")


@dataclass(frozen=True, slots=True)
class Asked:
    """Where a statement may go, as its execution options say.

    Attributes:
        one: The only shard that is asked, whatever the statement's keys are; None if they decide.
        every: Whether it may go to all shards.
        policy: What to do about shards that do not answer.
        explicit: Whether that policy was given, so that the answer tells of it.
    """

    one: str | None
    every: bool
    policy: AllShards
    explicit: bool


_ASKED = {every: Asked(None, every, AllShards(), explicit=False) for every in (False, True)}


def asked_for(options: Mapping[str, Any], *, scatter: bool) -> Asked:
    """Return what execution options say.

    Args:
        options: Those of the statement.
        scatter: Whether all shards may be asked if they say nothing.

    Raises:
        SettingsError: ``shard`` is neither a shard's name nor `AllShards`.
    """
    chosen = options.get("shard")
    every = bool(options.get("scatter", scatter))
    if isinstance(chosen, AllShards):
        return Asked(None, True, chosen, explicit=True)
    if chosen is None:
        return _ASKED[every]
    if isinstance(chosen, str):
        return Asked(chosen, every, AllShards(), explicit=False)
    raise SettingsError("shard", f"{chosen!r} is neither a shard's name nor AllShards()")
