"""End what a connection is waiting for, from another thread."""

import logging
import os
import socket
from dataclasses import dataclass
from threading import Thread
from typing import Any, Final, Self

from psycopg import Connection as DriverConnection
from psycopg import Error as DriverError
from sqlalchemy import Connection

logger = logging.getLogger(__name__)

CANCEL_SECONDS: Final = 1.0
"""A server that does not take note of a cancellation so soon is not there."""


@dataclass(frozen=True, slots=True)
class Line:
    """A connection in use, as another thread may take hold of it.

    Attributes:
        driver: The driver's connection.
        inode: Of its socket: the number of a file may be given to another one in the meantime.
    """

    driver: Any
    inode: int | None

    @classmethod
    def of(cls, conn: Connection) -> Self:
        """Return the line of ``conn``; call it in the thread that uses it."""
        driver = None if conn.closed or conn.invalidated else conn.connection.driver_connection
        return cls.of_driver(driver)

    @classmethod
    def of_driver(cls, driver: Any) -> Self:  # noqa: ANN401 -- psycopg's, or None
        """Return the line of the driver's own connection."""
        return cls(driver, _inode(driver))

    def sever(self) -> None:
        """Break the connection, so that who waits for an answer has an error at once."""
        try:
            copy = os.dup(self.driver.pgconn.socket)
        except (AttributeError, DriverError, OSError):
            return  # it is closed
        with socket.socket(fileno=copy) as line:
            if os.fstat(copy).st_ino == self.inode:
                line.shutdown(socket.SHUT_RDWR)

    def cancel(self) -> None:
        """Ask the server to give up the statement."""
        try:
            if isinstance(self.driver, DriverConnection):
                self.driver.cancel_safe(timeout=CANCEL_SECONDS)
            else:
                # Of asyncio; this one waits for the server as long as that takes.
                thread = Thread(target=self.driver.cancel, daemon=True)
                thread.start()
                thread.join(CANCEL_SECONDS)
        except (AttributeError, DriverError) as error:
            logger.debug("a statement was not cancelled", exc_info=error)


def _inode(driver: Any) -> int | None:  # noqa: ANN401 -- psycopg's, or None
    try:
        return os.fstat(driver.pgconn.socket).st_ino
    except (AttributeError, DriverError, OSError):
        return None
