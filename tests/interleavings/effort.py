"""How much is explored: a little by ``make test``, all within the bounds by ``make torture``."""

import pytest
from hypothesis import settings

THOROUGH = settings.get_current_profile_name() == "nightly"

torture = pytest.mark.skipif(not THOROUGH, reason="takes long; run by make torture")


def at_most(schedules: int) -> int | None:
    """Return the limit of an everyday search, those with the fewest switches first."""
    return None if THOROUGH else schedules
