"""Send lists of values as the arrays that PostgreSQL reads, at a tenth of the driver's usual cost.

The driver looks at each value to find out its type and how to write it, and writes most as text.
Where all are of one plain class, integers and texts are packed here, and the rest is sent by the
driver's own binary format. Whatever is not plain is left to the driver.
"""

from collections.abc import Callable
from datetime import date, datetime
from struct import Struct, error, pack
from typing import Any, ClassVar, Final
from uuid import UUID

from psycopg import Binary
from psycopg import Connection as DriverConnection
from psycopg.adapt import Dumper, PyFormat
from psycopg.errors import NumericValueOutOfRange
from psycopg.pq import Format
from psycopg.types.array import ListBinaryDumper
from psycopg.types.json import Json, Jsonb
from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    Boolean,
    Connection,
    Date,
    DateTime,
    Dialect,
    Float,
    Integer,
    LargeBinary,
    SmallInteger,
    Text,
    Uuid,
)
from sqlalchemy.dialects.postgresql import JSONB
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
        self.item_type = item_type
        self._packings = _packings_of(item_type)
        self._cast = ARRAY(item_type, dimensions=1).compile(dialect=_DIALECT)

    def get_col_spec(self, **_options: object) -> str:
        """Return what a parameter is cast to."""
        return self._cast

    def bind_processor(self, dialect: Dialect) -> Callable[[list[Any] | None], list[Any]]:
        """Return what marks a list as one that can be packed, if it can."""
        packings = self._packings
        process = self.item_type.dialect_impl(dialect).bind_processor(dialect)

        def marked(values: list[Any] | None) -> list[Any]:
            assert values is not None
            if process is not None:
                values = [process(value) for value in values]
            # Exactly: True is an integer, too, but what a column of integers refuses.
            kinds = set(map(type, values)) - {type(None)}
            if len(kinds) != 1:
                return list(values)
            (kind,) = kinds
            if kind is datetime and _are_mixed(values):
                return list(values)
            return packings.get(kind, list)(values)

        return marked


def is_packable(type_: TypeEngine[Any]) -> bool:
    """Return whether lists of values of this type can be packed."""
    return bool(_packings_of(type_))


def pack_on(conn: Connection) -> None:
    """Let the driver's connection send what is packed; nothing else that it sends changes."""
    driver: DriverConnection[Any] = conn.connection.driver_connection  # type: ignore[assignment] # or the async one
    if driver.adapters.get_dumper(_Texts, PyFormat.AUTO) is not _TextsDumper:
        for packing, dumper in _DUMPERS.items():
            driver.adapters.register_dumper(packing, dumper)


class _Packed(list[Any]):
    pass


class _InBinary(_Packed):
    pass


class _Texts(_Packed):
    pass


class _SmallIntegers(_Packed):
    pass


class _Integers(_Packed):
    pass


class _BigIntegers(_Packed):
    pass


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


class _BigIntegersDumper(Dumper):
    format = Format.BINARY
    oid = 1016
    item_oid: ClassVar[int] = 20
    code: ClassVar[str] = "q"

    def dump(self, obj: list[int | None]) -> bytes:
        has_nulls, code = None in obj, f"i{self.code}"
        head, size = (
            _head(self.item_oid, len(obj), has_nulls=has_nulls),
            Struct(f">{code}").size - 4,
        )
        try:
            if has_nulls:
                one = Struct(f">{code}").pack
                return head + b"".join([_NULL if v is None else one(size, v) for v in obj])
            with_sizes: list[int | None] = [size] * (2 * len(obj))
            with_sizes[1::2] = obj
            return head + pack(f">{code * len(obj)}", *with_sizes)
        except error:
            raise NumericValueOutOfRange("integer out of range") from None


class _IntegersDumper(_BigIntegersDumper):
    oid = 1007
    item_oid = 23
    code = "i"


class _SmallIntegersDumper(_BigIntegersDumper):
    oid = 1005
    item_oid = 21
    code = "h"


_DUMPERS: Final[dict[type[_Packed], type[Dumper]]] = {
    _SmallIntegers: _SmallIntegersDumper,
    _Integers: _IntegersDumper,
    _BigIntegers: _BigIntegersDumper,
    _Texts: _TextsDumper,
    _InBinary: ListBinaryDumper,
}


def _head(oid: int, count: int, *, has_nulls: bool) -> bytes:
    # Dimensions, whether there are nulls, the type; then the length and from where it is counted.
    return pack(">iiIii", 1, has_nulls, oid, count, 1)


def _are_mixed(moments: list[datetime | None]) -> bool:
    return len({moment.tzinfo is None for moment in moments if moment is not None}) > 1


def _packings_of(type_: TypeEngine[Any]) -> dict[type, type[_Packed]]:
    # What it is on PostgreSQL, which the application may have said in two ways.
    impl = type_.dialect_impl(_DIALECT)
    if isinstance(impl, TypeDecorator):
        impl = impl.impl_instance.dialect_impl(_DIALECT)
    return _PACKINGS.get(type(impl), {})


_PLAIN: Final[list[tuple[TypeEngine[Any], type, type[_Packed]]]] = [
    (SmallInteger(), int, _SmallIntegers),
    (Integer(), int, _Integers),
    (BigInteger(), int, _BigIntegers),
    (Text(), str, _Texts),
    (Boolean(), bool, _InBinary),
    (Float(), float, _InBinary),
    (Uuid(), UUID, _InBinary),
    (Date(), date, _InBinary),
    (DateTime(), datetime, _InBinary),
    (LargeBinary(), Binary, _InBinary),
    (JSON(), Json, _InBinary),
    (JSONB(), Jsonb, _InBinary),
]
_PACKINGS: Final = {
    type(column.dialect_impl(_DIALECT)): {of_values: packing}
    for column, of_values, packing in _PLAIN
}
"""By the type of a column: of which class its values are, and as what a list of them is sent."""
