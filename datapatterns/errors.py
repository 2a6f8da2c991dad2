"""Every error that this library raises on purpose.

DataPatternsError
├── ConfigurationError         fix the code or the settings; retrying cannot help
│   ├── IsolationLevelError
│   ├── SchemaNameError
│   └── SettingsError
├── ConflictError              another writer won; reload, decide again
├── UnavailableError           a dependency did not answer; retry with backoff
└── CorruptionError            stored data breaks an invariant; stop and look

Callers branch on the four families and log the leaves.
"""


class DataPatternsError(Exception):
    """Base of every deliberate error; catch it to catch all of them."""

    def __reduce__(self) -> tuple[object, ...]:
        # The default calls cls(*args), which breaks for any __init__ with named
        # arguments as soon as an error crosses a process boundary.
        return _restore, (type(self), self.args, self.__dict__)


class ConfigurationError(DataPatternsError):
    """The code or the settings are wrong; retrying cannot help."""


class IsolationLevelError(ConfigurationError):
    """The transaction sees too little, or too much, for this operation to be right.

    Attributes:
        found: The isolation level of the caller's transaction.
        needed: The level that the operation needs.
    """

    def __init__(self, *, found: str, needed: str) -> None:
        super().__init__(f"this needs a {needed} transaction, not {found}; open one for it")
        self.found = found
        self.needed = needed


class SchemaNameError(ConfigurationError):
    """The library's tables cannot live in a schema of this name.

    Attributes:
        name: The name that was asked for.
    """

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name!r} cannot name the library's schema; use 1 to 40 of a-z, 0-9 and _,"
            " not beginning with a digit or pg_"
        )
        self.name = name


class SettingsError(ConfigurationError):
    """A setting is missing or cannot be used.

    Attributes:
        setting: Which one, as the user would write it.
    """

    def __init__(self, setting: str, advice: str) -> None:
        super().__init__(f"{setting}: {advice}")
        self.setting = setting
        self.advice = advice


class ConflictError(DataPatternsError):
    """Another writer got there first; reload, decide again."""


class UnavailableError(DataPatternsError):
    """A dependency did not answer; retry with backoff."""


class CorruptionError(DataPatternsError):
    """Stored data breaks an invariant; stop and look."""


def _restore(
    cls: type[DataPatternsError], args: tuple[object, ...], state: dict[str, object]
) -> DataPatternsError:
    error = cls.__new__(cls, *args)
    error.__dict__.update(state)
    return error
