"""Refuse a token that is none before anything runs."""

import pytest

from datapatterns.testing import Explorer


def check_token(token: str) -> None:
    """Refuse what no exploration has printed.

    Raises:
        pytest.UsageError: It is no token.
    """
    try:
        Explorer(replay=token).close()
    except ValueError as error:
        raise pytest.UsageError(f"--datapatterns-replay: {error}") from None
