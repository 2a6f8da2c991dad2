"""How much is explored: a little by ``make test``, all within the bounds by ``make torture``."""

from hypothesis import settings

THOROUGH = settings.get_current_profile_name() == "nightly"
