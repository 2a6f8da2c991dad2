"""What the library logs, on stderr: lines for people, objects for programs."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import click

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


@contextmanager
def shown_logs(*, as_json: bool) -> Iterator[None]:
    """Show within the block what the library logs, from INFO on."""
    library = logging.getLogger("datapatterns")
    handler = _Handler(as_json=as_json)
    level = library.level
    library.addHandler(handler)
    library.setLevel(logging.INFO)
    try:
        yield
    finally:
        library.setLevel(level)
        library.removeHandler(handler)


class _Handler(logging.Handler):
    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def emit(self, record: logging.LogRecord) -> None:
        known = {name: value for name, value in vars(record).items() if name not in _OWN}
        if record.exc_info and record.exc_info[0] is not None:
            known["reason"] = record.exc_info[0].__name__
        moment = datetime.fromtimestamp(record.created, UTC)
        try:
            if self._as_json:
                told = {
                    "at": moment.isoformat(timespec="milliseconds"),
                    "level": record.levelname.lower(),
                    "message": record.getMessage(),
                }
                click.echo(json.dumps(told | known, default=str), err=True)
            else:
                values = "".join(f"  {name}={_shown(value)}" for name, value in known.items())
                line = f"{moment:%H:%M:%S} {record.levelname:<7} {record.getMessage()}{values}"
                click.echo(_visible(line), err=True)
        except OSError:
            self.handleError(record)


def _shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _visible(text: str) -> str:
    """Return ``text`` on one line: what data hold must not steer a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
