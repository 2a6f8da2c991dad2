"""A cache behind TLS: an end of it stands before the embedded server, which knows none itself."""

import asyncio
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Thread
from typing import ClassVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from datapatterns.cache_aside import AsyncCache
from datapatterns.embedded import EmbeddedServers
from tests.fixtures.caches import PATIENT, create_products, name_of, open_cache

pytestmark = [pytest.mark.postgres, pytest.mark.redis]


class _End(BaseRequestHandler):
    context: ClassVar[ssl.SSLContext]
    behind: ClassVar[tuple[str, int]]

    def handle(self) -> None:
        with (
            suppress(OSError),
            socket.create_connection(self.behind) as plain,
            self.context.wrap_socket(self.request, server_side=True) as secret,
        ):
            back = Thread(target=_pass_on, args=(plain, secret))
            back.start()
            _pass_on(secret, plain)
            plain.shutdown(socket.SHUT_RDWR)
            back.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)


class _Ends(ThreadingTCPServer):
    daemon_threads = True


@dataclass(frozen=True)
class Secured:
    port: int
    certificate: Path
    password: str

    def url(self, options: str = "") -> str:
        ca = f"ssl_ca_certs={self.certificate}"
        return f"rediss://:{self.password}@127.0.0.1:{self.port}/0?{options or ca}"


def _certificate(folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "valkey")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    path = folder / "valkey.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + private)
    return path


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    certificate = _certificate(tmp_path_factory.mktemp("tls"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with EmbeddedServers(durable=False) as servers:
        valkey = servers.valkey(tcp=True)
        password, _, address = valkey.url.removeprefix("redis://:").partition("@")
        host, _, port = address.removesuffix("/0").partition(":")
        handler = type("End", (_End,), {"context": context, "behind": (host, int(port))})
        with _Ends(("127.0.0.1", 0), handler) as ends:
            serving = Thread(target=ends.serve_forever)
            serving.start()
            yield Secured(ends.server_address[1], certificate, password)
            ends.shutdown()
            serving.join()


def test_threads_read_and_forget_over_tls(engine: Engine, secured: Secured) -> None:
    create_products(engine)
    with open_cache(secured.url(), engine) as cache:
        names = [cache.get_or_load(1, lambda conn: name_of(conn, 1)) for _ in range(2)]
        assert names == ["first", "first"]
        assert cache.stats().hits == 1
        cache.invalidate(1)
        cache.get_or_load(1, lambda conn: name_of(conn, 1))
        assert cache.stats().loads == 2


def test_tasks_read_over_tls(engine: Engine, secured: Secured) -> None:
    create_products(engine)

    async def load(conn: AsyncConnection) -> str | None:
        return await conn.run_sync(name_of, 1)

    async def scenario() -> None:
        own = create_async_engine(engine.url)
        cache = AsyncCache(secured.url(), own, name="product", policy=PATIENT)
        assert [await cache.get_or_load(1, load) for _ in range(2)] == ["first"] * 2
        assert cache.stats().hits == 1
        await cache.close()
        await own.dispose()

    asyncio.run(scenario())


def test_a_certificate_that_nobody_vouches_for_costs_no_page_and_shows_no_password(
    engine: Engine, secured: Secured, caplog: pytest.LogCaptureFixture
) -> None:
    create_products(engine)
    with open_cache(secured.url("ssl_cert_reqs=required"), engine) as cache:
        assert cache.get_or_load(1, lambda conn: name_of(conn, 1)) == "first"
        assert cache.stats().bypassed == 1
        assert secured.password not in caplog.text + repr(cache)
