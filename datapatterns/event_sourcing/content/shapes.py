"""What events and states can be: dataclasses, msgspec Structs, attrs classes, pydantic models.

msgspec encodes and decodes the first three by itself. Of pydantic nothing is imported: a model
brings what it needs along, and what does not fit is reported by msgspec's errors.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import is_dataclass
from functools import lru_cache, partial
from typing import Any, Final, Protocol, cast, get_args, get_origin, get_type_hints

import msgspec

_AS_STORED: Final = {"by_alias": True, "round_trip": True, "warnings": False}  # they quote values
_MODEL: Final = ("model_fields", "__pydantic_validator__", "__pydantic_serializer__")


class Decoder(Protocol):
    """What turns JSON into an object of one class."""

    def decode(self, data: str | bytes, /) -> Any:  # noqa: ANN401 -- an object of the class
        """Return the object.

        Raises:
            msgspec.DecodeError: It is no JSON, or does not fit the class.
        """
        ...


def is_model(cls: object) -> bool:
    """Return whether ``cls`` is a model of pydantic 2."""
    return isinstance(cls, type) and all(hasattr(cls, name) for name in _MODEL)


def is_frozen(cls: object) -> bool | None:
    """Return whether objects of ``cls`` are unchanging; None if it has no fields of its own."""
    if not isinstance(cls, type):
        return None
    if issubclass(cls, msgspec.Struct):
        return cls.__struct_config__.frozen
    if is_dataclass(cls):
        return bool(cls.__dataclass_params__.frozen)  # type: ignore[attr-defined] # typeshed
    if hasattr(cls, "__attrs_attrs__"):
        # Either of attrs' two hooks; it has no public name for it in all releases.
        return "frozen" in getattr(cls.__setattr__, "__name__", "")
    return bool(cast("Any", cls).model_config.get("frozen")) if is_model(cls) else None


def field_names(cls: type) -> tuple[str, ...]:
    """Return the fields of such a class; of another one, none."""
    if issubclass(cls, msgspec.Struct):
        return cls.__struct_fields__
    if is_dataclass(cls):
        return tuple(cls.__dataclass_fields__)
    if hasattr(cls, "__attrs_attrs__"):
        return tuple(attribute.name for attribute in cls.__attrs_attrs__)
    return tuple(cast("Any", cls).model_fields) if is_model(cls) else ()


def classes_within(hint: Any) -> set[type]:  # noqa: ANN401 -- a class or a type hint
    """Return the classes that data of this shape can consist of, as far as hints say."""
    found: set[type] = set()
    waiting: list[Any] = [hint]
    while waiting:
        one = waiting.pop()
        inner = (get_origin(one), *get_args(one), getattr(one, "__supertype__", None))
        waiting += [part for part in inner if part is not None]
        if isinstance(one, type) and one not in found:
            found.add(one)
            waiting += hints_of(one)
    return found


def hints_of(cls: type) -> Iterable[Any]:
    """Return the types of the fields of a class that has some, with their annotations."""
    if not field_names(cls):
        return ()
    try:
        return get_type_hints(cls, include_extras=True).values()
    except (NameError, TypeError):  # only the type checker can resolve it, so nothing is decoded
        return ()


def fields_made(cls: Any) -> list[tuple[str, list[Any]]]:  # noqa: ANN401 -- a class
    """Return each field of such a class with what makes its value: defaults, converters, checks."""
    if issubclass(cls, msgspec.Struct):
        fields = msgspec.structs.fields(cls)
        return [(field.name, [field.default, field.default_factory]) for field in fields]
    if is_dataclass(cls):
        named = cls.__dataclass_fields__
        return [(name, [field.default, field.default_factory]) for name, field in named.items()]
    if hasattr(cls, "__attrs_attrs__"):
        # What attrs wraps in classes of its own holds what matters.
        return [
            (
                made.name,
                [
                    getattr(made.default, "factory", made.default),
                    getattr(made.converter, "converter", made.converter),
                ],
            )
            for made in cls.__attrs_attrs__
        ]
    if not is_model(cls):
        return []
    infos = cls.model_fields.items()
    return [(name, [info.default, info.default_factory, *info.metadata]) for name, info in infos]


def decoder_of(hint: Any) -> Decoder:  # noqa: ANN401 -- a class or a type hint
    """Return what decodes ``hint``.

    Raises:
        TypeError: msgspec cannot decode it.
    """
    if is_model(hint):
        return _ModelDecoder(hint)
    return msgspec.json.Decoder(hint, dec_hook=_decode_model)


def converter_of(cls: Any) -> Callable[[Any], Any]:  # noqa: ANN401 -- a class
    """Return what makes objects of ``cls`` from plain data.

    It raises `msgspec.ValidationError` for what does not fit. What kind of class it is, is looked
    at once: for each event it would take twice as long as the rest.
    """
    if is_model(cls):
        decode = _ModelDecoder(cls).decode
        return lambda data: decode(_encoder.encode(data))
    return partial(msgspec.convert, type=cls, str_keys=True, dec_hook=_decode_model)


def schema_of(hint: Any) -> str:  # noqa: ANN401 -- a class or a type hint
    """Return a text that differs when the shape does."""
    if is_model(hint):
        return repr(hint.model_json_schema())
    return repr(msgspec.json.schema(hint, schema_hook=_model_schema))


def plain(value: object, *, str_keys: bool) -> Any:  # noqa: ANN401 -- what JSON can hold
    """Return ``value`` as dicts, lists and plain values.

    Raises:
        TypeError: It holds what has no such form.
    """
    return msgspec.to_builtins(value, str_keys=str_keys, enc_hook=_encode_model)


@lru_cache(maxsize=1_000)
def encoder_of(cls: type[Any]) -> Callable[[Any], bytes]:
    """Return what writes objects of ``cls`` as JSON."""
    if not is_model(cls):
        return _encoder.encode
    to_json = cast("Any", cls).__pydantic_serializer__.to_json
    return lambda model: cast("bytes", to_json(model, **_AS_STORED))


def encode_lines(objects: Sequence[Any]) -> bytes:
    """Return objects, but no models, as lines of JSON."""
    return _encoder.encode_lines(objects)


class _ModelDecoder:
    __slots__ = ("_validate",)

    def __init__(self, model: Any) -> None:  # noqa: ANN401 -- a class of a package that may be absent
        self._validate = model.__pydantic_validator__.validate_json

    def decode(self, data: str | bytes, /) -> Any:  # noqa: ANN401 -- an object of the class
        try:
            return self._validate(data)
        except ValueError as error:  # what pydantic raises is one, and quotes the data
            raise msgspec.ValidationError("; ".join(_misfits(error))) from None


def _misfits(error: Any) -> Iterator[str]:  # noqa: ANN401 -- of a package that may be absent
    for found in error.errors(include_url=False, include_context=False, include_input=False):
        # What lies deeper may be the key of a mapping, which is data.
        place = f"$.{found['loc'][0]}" if found["loc"] else "$"
        yield f"{found['type']} - at `{place}`"


def _encode_model(value: object) -> object:
    if not is_model(type(value)):
        raise TypeError(f"Encoding objects of type {type(value).__name__} is unsupported")
    return cast("Any", value).model_dump(mode="json", **_AS_STORED)


def _decode_model(hint: type, data: object) -> object:
    if is_model(hint):
        return _ModelDecoder(hint).decode(_encoder.encode(data))
    if isinstance(data, hint):  # what msgspec does without this function
        return data
    raise msgspec.ValidationError(f"Expected `{hint.__name__}`, got `{type(data).__name__}`")


def _model_schema(hint: type) -> dict[str, Any]:
    if not is_model(hint):
        raise NotImplementedError  # by which msgspec is told to raise its own TypeError
    return cast("dict[str, Any]", cast("Any", hint).model_json_schema())


_encoder: Final = msgspec.json.Encoder(enc_hook=_encode_model)
