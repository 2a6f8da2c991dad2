"""Real PostgreSQL and Valkey servers from wheels, for the demo, tests and laptops."""

from datapatterns.embedded.postgres_server import PostgresServer
from datapatterns.embedded.servers import EmbeddedServers
from datapatterns.embedded.valkey_server import ValkeyServer

__all__ = ["EmbeddedServers", "PostgresServer", "ValkeyServer"]
