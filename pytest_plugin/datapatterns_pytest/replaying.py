"""Refuse a token that is none before anything runs."""

import pytest

from datapatterns.testing.interleaving.tokens import from_token


def check_token(token: str) -> None:
    """Refuse what no exploration has printed.

    Raises:
        pytest.UsageError: It is no token.
    """
    try:
        from_token(token)
    except ValueError as error:
        raise pytest.UsageError(f"--datapatterns-replay: {error}") from None
