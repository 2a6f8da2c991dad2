"""How much is explored: a little by ``make test``, all within the bounds by ``make torture``."""

import pytest
from hypothesis import settings

THOROUGH = settings.get_current_profile_name() == "nightly"

torture = pytest.mark.skipif(not THOROUGH, reason="takes long; run by make torture")


def at_most(schedules: int) -> int:
    """Return the limit of a search, which begins with the fewest switches."""
    return 40 * schedules if THOROUGH else schedules
