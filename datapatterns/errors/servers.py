"""Servers, and the settings that lead to them."""

from datapatterns.errors.families import ConfigurationError, UnavailableError


class MissingExtraError(ConfigurationError):
    """A package is not installed that only some users need.

    Attributes:
        package: Which one.
        extra: The extra of this library that brings it.
    """

    def __init__(self, package: str, *, extra: str) -> None:
        super().__init__(f'{package} is not installed; run: pip install "datapatterns[{extra}]"')
        self.package = package
        self.extra = extra


class MissingRightsError(ConfigurationError):
    """The database role may not do this.

    Attributes:
        reason: What the server said, such as ``permission denied for schema shop``.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; connect as a role that may, or grant it the right")
        self.reason = reason


class ReadOnlyServerError(ConfigurationError):
    """The server, or its setting for this role, only allows reading. Nothing was written.

    The connection is not used again, so that after a failover the next attempt opens one to
    whatever is the primary then.

    Attributes:
        reason: Why, such as ``it is a standby``; None if the server was not asked.
    """

    def __init__(self, reason: str | None = None) -> None:
        why = "" if reason is None else f" ({reason})"
        super().__init__(
            f"this server only allows reading{why}; connect to the primary: name all hosts in the"
            " URL, with target_session_attrs=read-write, and a role that may write"
        )
        self.reason = reason


class ServerTooOldError(ConfigurationError):
    """The server lacks what the library builds on.

    Attributes:
        product: What it is, such as ``PostgreSQL``.
        found: The server's version, such as ``13.4``.
        needed: The oldest major version that will do.
    """

    def __init__(self, product: str, *, found: str, needed: int) -> None:
        super().__init__(
            f"this is {product} {found}, {needed} or newer is needed; upgrade the server"
        )
        self.product = product
        self.found = found
        self.needed = needed


class SettingsError(ConfigurationError):
    """A setting is missing or cannot be used.

    Attributes:
        setting: Which one, as the user would write it.
    """

    def __init__(self, setting: str, advice: str) -> None:
        super().__init__(f"{setting}: {advice}")
        self.setting = setting
        self.advice = advice


class ServerUnavailableError(UnavailableError):
    """A server did not answer.

    Attributes:
        server: Which one, without its password.
        reason: What the driver said.
    """

    def __init__(self, server: str, reason: str) -> None:
        super().__init__(
            f"{server} did not answer ({reason}); check address, user, password, and that it runs"
        )
        self.server = server
        self.reason = reason
