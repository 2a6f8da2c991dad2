"""Numbers that a server gives out: another shard that is to go on must not begin anew."""

from collections.abc import Mapping

from sqlalchemy import BigInteger, Connection, Table, Text, cast, func, literal, select
from sqlalchemy.dialects.postgresql import REGCLASS


def last_numbers(conn: Connection, of: Table) -> dict[str, int]:
    """Return the last number that each column of a table was given on this server, if any."""
    found = {}
    for column in of.columns:
        sequence = cast(_sequence(conn, of, column.name), REGCLASS)
        number = conn.scalar(select(func.pg_sequence_last_value(sequence, type_=BigInteger())))
        if number is not None:
            found[column.name] = number
    return found


def raise_numbers(conn: Connection, of: Table, numbers: Mapping[str, int]) -> None:
    """Let this server go on after ``numbers``, as soon as it is the one to give them out."""
    own = last_numbers(conn, of)
    for name, number in numbers.items():
        if own.get(name, number - 1) < number:
            sequence = cast(_sequence(conn, of, name), REGCLASS)
            conn.execute(select(func.setval(sequence, number))).close()


def _sequence(conn: Connection, of: Table, name: str) -> object:
    table = conn.dialect.identifier_preparer.format_table(of)
    return func.pg_get_serial_sequence(literal(table, Text), literal(name, Text), type_=Text())
