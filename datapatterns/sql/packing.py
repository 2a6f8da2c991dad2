"""Send lists of plain values as the arrays that PostgreSQL reads, at a tenth of the driver's cost.

The driver looks at each value to find out its type and how to write it. Where a column says what
all of them are, one call packs a list. Whatever is not plain is left to the driver.
"""

from collections.abc import Callable
from struct import Struct, error, pack
from typing import Any, ClassVar, Final

from psycopg import Connection as DriverConnection
from psycopg.adapt import Dumper, PyFormat
from psycopg.errors import NumericValueOutOfRange
from psycopg.pq import Format
from sqlalchemy import BigInteger, Connection, Dialect, Integer, SmallInteger, Text
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.types import TypeDecorator, TypeEngine, UserDefinedType

_DIALECT: Final = PGDialect_psycopg()  # type: ignore[no-untyped-call] # SQLAlchemy's own
_COUNT: Final = Struct(">i")
_NULL: Final = _COUNT.pack(-1)


class PackedArray(UserDefinedType[list[Any]]):
    """The type of a parameter that is a list of values of ``item_type``, which `is_packable`."""

    cache_ok = True
    render_bind_cast = True

    def __init__(self, item_type: TypeEngine[Any]) -> None:
        packed = _packing_of(item_type)
        assert packed is not None
        self.item_type = item_type
        self._packed = packed

    def get_col_spec(self, **_options: object) -> str:
        """Return the name that a parameter is cast to."""
        return f"{self._packed.name}[]"

    def bind_processor(self, dialect: Dialect) -> Callable[[list[Any] | None], list[Any]]:
        """Return what marks a list as one that can be packed, if it can."""
        packed, plain = self._packed, self._packed.plain
        process = self.item_type.dialect_impl(dialect).bind_processor(dialect)

        def marked(values: list[Any] | None) -> list[Any]:
            assert values is not None
            if process is not None:
                values = [None if value is None else process(value) for value in values]
            # Exactly: True is an integer, too, but what a column of integers refuses.
            kinds = set(map(type, values)) - {type(None)}
            return packed(values) if kinds == {plain} else list(values)

        return marked


def is_packable(type_: TypeEngine[Any]) -> bool:
    """Return whether lists of values of this type can be packed."""
    return _packing_of(type_) is not None


def pack_on(conn: Connection) -> None:
    """Let the driver's connection send what is packed; nothing else that it sends changes."""
    driver: DriverConnection[Any] = conn.connection.driver_connection  # type: ignore[assignment] # or the async one
    if driver.adapters.get_dumper(_Texts, PyFormat.AUTO) is not _Texts.dumper:
        for packed in _PACKINGS.values():
            driver.adapters.register_dumper(packed, packed.dumper)


class _Packed(list[Any]):
    name: ClassVar[str]
    plain: ClassVar[type]
    dumper: ClassVar[type[Dumper]]


def _integers(type_name: str, *, oid: int, array_oid: int, code: str, size: int) -> type[_Packed]:
    one = Struct(f">i{code}").pack

    class IntegersDumper(Dumper):
        format = Format.BINARY

        def dump(self, obj: list[int | None]) -> bytes:
            has_nulls = None in obj
            head = _head(oid, len(obj), has_nulls=has_nulls)
            try:
                if has_nulls:
                    return head + b"".join([_NULL if v is None else one(size, v) for v in obj])
                with_sizes: list[int | None] = [size] * (2 * len(obj))
                with_sizes[1::2] = obj
                return head + pack(f">{f'i{code}' * len(obj)}", *with_sizes)
            except error:
                raise NumericValueOutOfRange(f"{type_name} out of range") from None

    class Integers(_Packed):
        name = type_name
        plain = int
        dumper = IntegersDumper

    IntegersDumper.oid = array_oid
    return Integers


class _TextsDumper(Dumper):
    format = Format.BINARY
    oid = 1009

    def dump(self, obj: list[str | None]) -> bytes:
        encoding = self.connection.info.encoding if self.connection else "utf-8"
        parts = [_head(25, len(obj), has_nulls=None in obj)]
        count = _COUNT.pack
        for text in obj:
            if text is None:
                parts.append(_NULL)
            else:
                encoded = text.encode(encoding)
                parts += (count(len(encoded)), encoded)
        return b"".join(parts)


class _Texts(_Packed):
    name = "TEXT"
    plain = str
    dumper = _TextsDumper


def _head(oid: int, count: int, *, has_nulls: bool) -> bytes:
    # Dimensions, whether there are nulls, the type; then the length and from where it is counted.
    return pack(">iiIii", 1, has_nulls, oid, count, 1)


def _packing_of(type_: TypeEngine[Any]) -> type[_Packed] | None:
    # What it is on PostgreSQL, which the application may have said in two ways.
    impl = type_.dialect_impl(_DIALECT)
    if isinstance(impl, TypeDecorator):
        impl = impl.impl_instance.dialect_impl(_DIALECT)
    return _PACKINGS.get(type(impl))


_PACKINGS: Final[dict[type, type[_Packed]]] = {
    type(plain.dialect_impl(_DIALECT)): packed
    for plain, packed in (
        (SmallInteger(), _integers("SMALLINT", oid=21, array_oid=1005, code="h", size=2)),
        (Integer(), _integers("INTEGER", oid=23, array_oid=1007, code="i", size=4)),
        (BigInteger(), _integers("BIGINT", oid=20, array_oid=1016, code="q", size=8)),
        (Text(), _Texts),
    )
}
