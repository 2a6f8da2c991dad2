"""What the servers are told: settings in, configuration files out."""

from collections.abc import Mapping

from datapatterns.errors import SettingsError

Setting = str | int | bool
"""A server's setting; True and False become on and off, or yes and no."""

POSTGRES_SETTINGS: Mapping[str, Setting] = {
    "max_connections": 200,
    "max_prepared_transactions": 100,  # two-phase commit across shards
    "shared_buffers": "64MB",
    "max_wal_size": "512MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%a@%d ",
    # Segments are files in the data folder, so a killed server leaves none in /dev/shm.
    "dynamic_shared_memory_type": "mmap",
}
"""For a laptop, and for what this library does; a caller's settings come on top."""

# Commits still reach the operating system before they are acknowledged: a killed server loses
# nothing, a machine without power does.
POSTGRES_UNSAFE_SETTINGS: Mapping[str, Setting] = {"fsync": False, "full_page_writes": False}

VALKEY_SETTINGS: Mapping[str, Setting] = {
    "appendonly": True,
    "appendfsync": "everysec",
    "save": "",
    # A title of its own would hide the command line by which a left-over server is recognised.
    "set-proc-title": False,
}
VALKEY_UNSAFE_SETTINGS: Mapping[str, Setting] = {"appendonly": False}

HOST_BASED_AUTHENTICATION = (
    "local all all trust\nlocal replication all trust\n"
    "host all all 127.0.0.1/32 scram-sha-256\nhost replication all 127.0.0.1/32 scram-sha-256\n"
)
"""The folder of the socket keeps strangers out; over TCP a password does."""


def postgres_configuration(settings: Mapping[str, Setting]) -> str:
    """Return the text of a ``postgresql.conf``.

    >>> print(postgres_configuration({"work_mem": "8MB", "fsync": False}), end="")
    work_mem = '8MB'
    fsync = 'off'

    Raises:
        SettingsError: A name or a value cannot be written down.
    """
    lines = []
    for name, setting in settings.items():
        if not name.replace("_", "").replace(".", "").isalnum():
            raise SettingsError(name, "is not the name of a PostgreSQL setting")
        value = _one_line(name, setting, yes="on", no="off")
        lines.append(f"{name} = '{value.replace(_BACKSLASH, _BACKSLASH * 2).replace(*_QUOTE)}'\n")
    return "".join(lines)


def valkey_configuration(settings: Mapping[str, Setting]) -> str:
    r"""Return the text of a ``valkey.conf``.

    >>> print(valkey_configuration({"save": "", "appendonly": True}), end="")
    save ""
    appendonly "yes"

    Raises:
        SettingsError: A name or a value cannot be written down.
    """
    lines = []
    for name, setting in settings.items():
        if not name.replace("-", "").isalnum():
            raise SettingsError(name, "is not the name of a Valkey setting")
        value = _one_line(name, setting, yes="yes", no="no")
        escaped = value.replace(_BACKSLASH, _BACKSLASH * 2).replace('"', '\\"')
        lines.append(f'{name} "{escaped}"\n')
    return "".join(lines)


_BACKSLASH = "\\"
_QUOTE = ("'", "''")


def _one_line(name: str, setting: Setting, *, yes: str, no: str) -> str:
    if isinstance(setting, bool):
        return yes if setting else no
    value = str(setting)
    if not value.isprintable():
        raise SettingsError(name, "its value must be one line of printable characters")
    return value
