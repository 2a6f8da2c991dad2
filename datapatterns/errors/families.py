"""What callers branch on."""


class DataPatternsError(Exception):
    """Base of every deliberate error; catch it to catch all of them."""

    def __reduce__(self) -> tuple[object, ...]:
        # The default calls cls(*args), which breaks for any __init__ with named
        # arguments as soon as an error crosses a process boundary.
        return _restore, (type(self), self.args, self.__dict__)


class ConfigurationError(DataPatternsError):
    """The code or the settings are wrong; retrying cannot help."""


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
