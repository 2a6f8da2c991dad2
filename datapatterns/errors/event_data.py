"""What an event holds: its type and shape, how it is stored, whom it is about."""

from datapatterns.errors.families import ConfigurationError, CorruptionError


class CodecError(ConfigurationError):
    """A codec is not known to this store, or cannot be used as it is declared.

    Attributes:
        codec: Its id; None if it has none.
    """

    def __init__(self, codec: int | None, advice: str) -> None:
        super().__init__(advice if codec is None else f"codec {codec} {advice}")
        self.codec = codec


class EncryptionKeyError(ConfigurationError):
    """A key that data was encrypted under is not at hand, or is no key.

    Attributes:
        key_id: Its name.
    """

    def __init__(self, key_id: str, advice: str) -> None:
        super().__init__(f"encryption key {key_id!r} {advice}")
        self.key_id = key_id


class EventDataError(ConfigurationError):
    """An event holds data that could not be stored and read back.

    Attributes:
        event_type: The type of the event.
        reason: What is wrong with its data, and where.
    """

    def __init__(self, event_type: str, reason: str) -> None:
        super().__init__(f"the data of {event_type!r} cannot be stored: {reason}")
        self.event_type = event_type
        self.reason = reason


class EventShapeError(ConfigurationError):
    """Stored data does not fit the class that is declared for its type.

    Attributes:
        event_type: The type of the event.
        schema_version: The shape that was stored.
        reason: What does not fit.
    """

    def __init__(self, event_type: str, *, schema_version: int, reason: str) -> None:
        super().__init__(
            f"{event_type!r} as stored in version {schema_version} does not fit its class:"
            f" {reason}; register an upcaster with @upcast({event_type!r}, {schema_version})"
        )
        self.event_type = event_type
        self.schema_version = schema_version
        self.reason = reason


class EventTypeError(ConfigurationError):
    """A type of event is not declared, or is declared twice.

    Attributes:
        event_type: The name of the type, or of the class that has none.
    """

    def __init__(self, event_type: str, advice: str) -> None:
        super().__init__(f"{event_type}: {advice}")
        self.event_type = event_type


class PersonalFieldError(ConfigurationError):
    """A personal field is declared so that it could not be protected.

    Attributes:
        event_type: The type of the event.
        field: Which field.
    """

    def __init__(self, event_type: str, *, field: str, advice: str) -> None:
        super().__init__(f"{event_type}: the personal field {field} {advice}")
        self.event_type = event_type
        self.field = field


class SubjectForgottenError(ConfigurationError):
    """An event holds personal data of somebody who was forgotten.

    Attributes:
        subject: Who it is about.
    """

    def __init__(self, subject: str) -> None:
        super().__init__(
            f"{subject!r} was forgotten, so nothing personal can be stored about them any more;"
            " leave the event out, or give the person a new id if they came back"
        )
        self.subject = subject


class SubjectKeyError(ConfigurationError):
    """The key of a person is needed, and this store cannot get it.

    Attributes:
        subject: Who it is about; None if it does not matter.
    """

    def __init__(self, subject: str | None, advice: str) -> None:
        super().__init__(advice if subject is None else f"the key of {subject!r} {advice}")
        self.subject = subject


class PayloadError(CorruptionError):
    """What a codec once made cannot be read: it was changed, cut, moved, or is too large.

    Attributes:
        codec: The name of the codec.
        reason: What is wrong with it; never what it holds.
    """

    def __init__(self, codec: str, reason: str) -> None:
        super().__init__(
            f"a payload of {codec} cannot be read: {reason}; it is not what was appended, so"
            " compare it with a backup"
        )
        self.codec = codec
        self.reason = reason
