"""TLS in libpq's words: what is trusted, what is refused, and that nothing ever falls to plain text."""

from __future__ import annotations

import asyncio
import datetime as dt
import gc
import socket
import ssl
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3.session
import botocore.auth
import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from asyncdb_guard import ConfigurationError, ConnectFailedError, DatabaseSettings, GuardedPool
from asyncdb_guard.connect.tls import TlsContexts
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy

IN_TLS = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
USER = "app"
NAME = "db.internal.example"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def trusted(authority: trustme.CA, directory: Path) -> str:
    """The file of the CA that issued the servers' certificates."""
    path = directory / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return str(path)


@pytest.fixture(scope="module")
def untrusted(directory: Path) -> str:
    """The file of another CA."""
    path = directory / "other.pem"
    trustme.CA().cert_pem.write_to_path(path)
    return str(path)


@pytest.fixture(scope="module")
def start(authority: trustme.CA, directory: Path) -> Iterator[Callable[..., Cluster]]:
    """Starts a PostgreSQL that speaks TLS only, with a certificate for these names."""
    clusters: list[Cluster] = []

    def start(*names: str, not_after: dt.datetime | None = None) -> Cluster:
        certificate = authority.issue_cert(*names, not_after=not_after)
        stem = uuid.uuid4().hex
        files = directory / f"{stem}.crt", directory / f"{stem}.key"
        certificate.cert_chain_pems[0].write_to_path(files[0])
        certificate.private_key_pem.write_to_path(files[1])
        cluster = Cluster.start(source="machine", tls=files, auth="scram-sha-256")
        clusters.append(cluster)
        cluster.psql(f"CREATE ROLE {USER} LOGIN PASSWORD 'word'")
        return cluster

    yield start
    for cluster in clusters:
        cluster.close()


@pytest.fixture(scope="module")
def tls_server(start: Callable[..., Cluster]) -> Cluster:
    """Its certificate is for the address that is dialled, and for a name."""
    return start(Cluster.host, NAME)


@pytest.fixture(scope="module")
def misnamed_server(start: Callable[..., Cluster]) -> Cluster:
    return start("other.internal.example")


@pytest.fixture(scope="module")
def expired_server(start: Callable[..., Cluster]) -> Cluster:
    return start(Cluster.host, not_after=dt.datetime(2020, 1, 1, tzinfo=dt.UTC))


def settings(url: str, sslmode: str, ca: str | None = None) -> DatabaseSettings:
    return DatabaseSettings(url=url, sslmode=sslmode, ssl_root_cert=ca, breaker_fail_max=1)


async def refusal(made: DatabaseSettings, circuit: str = "open") -> str:
    """Why there is no connection. It counts as a failure, and no text names the host or the user."""
    async with GuardedPool(made) as pool:
        with pytest.raises(ConnectFailedError) as caught:
            await pool.ping()
        assert pool.stats()["circuit"] == circuit
    text = str(caught.value)
    assert not any(word in text for word in (USER, Cluster.host, NAME))
    return text


# Against a server that speaks TLS only


@pytest.mark.debian
@pytest.mark.parametrize("sslmode", ["verify-full", "verify-ca"])
async def test_the_right_ca_is_taken(tls_server, trusted, sslmode):
    async with GuardedPool(settings(tls_server.url(user=USER, password="word"), sslmode, trusted)) as pool:
        assert await pool.fetchval(IN_TLS) is True


@pytest.mark.debian
async def test_require_takes_any_certificate(misnamed_server):
    async with GuardedPool(settings(misnamed_server.url(user=USER, password="word"), "require")) as pool:
        assert await pool.fetchval(IN_TLS) is True


@pytest.mark.debian
@pytest.mark.parametrize("sslmode", ["verify-full", "verify-ca"])
async def test_another_ca_is_refused(tls_server, untrusted, sslmode):
    text = await refusal(settings(tls_server.url(user=USER, password="word"), sslmode, untrusted))
    assert "comes from a CA that is not trusted; name that CA's file in LAMBDA_DATABASE_SSL_ROOT_CERT" in text


@pytest.mark.debian
async def test_a_private_ca_is_not_in_the_systems_store(tls_server):
    text = await refusal(settings(tls_server.url(user=USER, password="word"), "verify-full"))
    assert "comes from a CA that is not trusted" in text


@pytest.mark.debian
async def test_another_address_is_refused(misnamed_server, trusted):
    text = await refusal(settings(misnamed_server.url(user=USER, password="word"), "verify-full", trusted))
    assert "is not for this IP address; connect by a name in the certificate" in text


@pytest.mark.debian
async def test_another_host_name_is_refused(misnamed_server, trusted, resolver):
    resolver.answers[NAME] = misnamed_server.host, misnamed_server.port
    url = f"postgresql://{USER}:word@{NAME}/postgres"
    text = await refusal(settings(url, "verify-full", trusted))
    assert "is for another host name; connect by a name in the certificate" in text


@pytest.mark.debian
@pytest.mark.parametrize("served", [True, False])
async def test_where_each_address_is_tried_the_name_is_still_verified(
    tls_server, misnamed_server, trusted, monkeypatch, served
):
    server = tls_server if served else misnamed_server
    ask = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **others: ask(server.host if host == NAME else host, *rest, **others)
    )
    url = f"postgresql://{USER}:word@{NAME}:{server.port}/postgres?target_session_attrs=read-write"
    if served:
        async with GuardedPool(settings(url, "verify-full", trusted)) as pool:
            assert await pool.fetchval(IN_TLS) is True
    else:
        assert "is for another host name" in await refusal(settings(url, "verify-full", trusted))


@pytest.mark.debian
async def test_verify_ca_does_not_look_at_the_name(misnamed_server, trusted):
    async with GuardedPool(settings(misnamed_server.url(user=USER, password="word"), "verify-ca", trusted)) as pool:
        assert await pool.fetchval(IN_TLS) is True


@pytest.mark.debian
@pytest.mark.parametrize("sslmode", ["verify-full", "verify-ca"])
async def test_an_expired_certificate_is_refused(expired_server, trusted, sslmode):
    text = await refusal(settings(expired_server.url(user=USER, password="word"), sslmode, trusted))
    assert "has expired; renew it on the server" in text


@pytest.mark.debian
async def test_off_loopback_the_certificate_is_verified_without_being_asked(
    tls_server, misnamed_server, trusted, resolver
):
    url = f"postgresql://{USER}:word@{NAME}/postgres?sslrootcert={trusted}"
    resolver.answers[NAME] = tls_server.host, tls_server.port
    async with GuardedPool(DatabaseSettings(url=url)) as pool:
        assert await pool.fetchval(IN_TLS) is True
    resolver.answers[NAME] = misnamed_server.host, misnamed_server.port
    assert "is for another host name" in await refusal(DatabaseSettings(url=url, breaker_fail_max=1))


@pytest.mark.debian
async def test_a_server_that_demands_tls_says_so_to_plain_text(tls_server):
    async with GuardedPool(settings(tls_server.url(user=USER, password="word"), "disable")) as pool:
        with pytest.raises(ConnectFailedError, match="a server that requires TLS answers the same"):
            await pool.ping()


@pytest.mark.debian
async def test_nothing_but_the_request_for_tls_goes_in_clear(tls_server, trusted):
    with TcpProxy(tls_server.host, tls_server.port) as proxy:
        url = tls_server.url(user=USER, password="word", port=proxy.port)
        async with GuardedPool(settings(url, "verify-full", trusted)) as pool:
            await pool.ping()
            assert (proxy.accepted, proxy.tls_requests, proxy.startups) == (1, 1, [])


@pytest.mark.debian
async def test_an_iam_token_is_the_password_over_tls(tls_server, trusted, monkeypatch):
    """The server is told the token that boto3 makes for this second, and takes ours."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_REGION": "eu-west-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    now = dt.datetime(2026, 1, 2, 3, 4, 5)  # noqa: DTZ001  # botocore's own are naive
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *_: now)
    client = boto3.session.Session().client("rds", region_name="eu-west-1")
    token = client.generate_db_auth_token(tls_server.host, tls_server.port, "token_bearer")
    tls_server.psql(f"CREATE ROLE token_bearer LOGIN PASSWORD '{token}'")
    made = DatabaseSettings(
        url=tls_server.url(user="token_bearer"), iam_auth=True, ssl_root_cert=trusted, connect_timeout_ms=10_000
    )
    async with GuardedPool(made) as pool:
        assert await pool.fetchval("SELECT current_user") == "token_bearer"


# With a client's certificate


@pytest.fixture(scope="module")
def certified(tls_server: Cluster, authority: trustme.CA, directory: Path) -> tuple[str, str]:
    """The files of a certificate for the role `certified`, who logs in with nothing else, and of its key."""
    certificate = authority.issue_cert(common_name="certified")
    files = directory / "client.pem", directory / "client.key"
    certificate.cert_chain_pems[0].write_to_path(files[0])
    certificate.private_key_pem.write_to_path(files[1])
    authority.cert_pem.write_to_path(tls_server.data_directory / "root.crt")
    (tls_server.data_directory / "root.crt").chmod(0o644)
    rules = tls_server.data_directory / "pg_hba.conf"
    rules.write_text(f"hostssl all certified {tls_server.host}/32 cert\n{rules.read_text()}")
    tls_server.psql("CREATE ROLE certified LOGIN; ALTER SYSTEM SET ssl_ca_file = 'root.crt'")
    tls_server.psql("SELECT pg_reload_conf()")
    return str(files[0]), str(files[1])


@pytest.mark.debian
@pytest.mark.parametrize("in_url", [True, False])
async def test_a_clients_certificate_logs_in_without_a_password(tls_server, trusted, certified, in_url):
    files = {"sslcert": certified[0], "sslkey": certified[1]} if in_url else {}
    settings = {} if in_url else {"ssl_cert": certified[0], "ssl_key": certified[1]}
    url = tls_server.url(user="certified", sslrootcert=trusted, **files)
    async with GuardedPool(DatabaseSettings(url=url, **settings)) as pool:
        query = "SELECT current_user, client_dn FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        user, name = await pool.fetchrow(query)
    assert user == "certified"
    assert "/CN=" in name


@pytest.mark.debian
async def test_without_a_clients_certificate_a_server_that_asks_for_one_refuses(tls_server, trusted, certified):
    text = await refusal(
        DatabaseSettings(url=tls_server.url(user="certified", sslrootcert=trusted), breaker_fail_max=1),
        circuit="closed",
    )
    assert "the server refused the login" in text


def encrypted(directory: Path, key: str) -> str:
    """The file of the same key, encrypted."""
    loaded = serialization.load_pem_private_key(Path(key).read_bytes(), None)
    path = directory / "encrypted.key"
    path.write_bytes(
        loaded.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"word"),
        )
    )
    return str(path)


@pytest.mark.parametrize("case", ["no such file", "another key", "no key", "an encrypted key"])
async def test_a_useless_client_certificate_is_a_matter_of_configuration(directory, authority, case):
    stem = directory / uuid.uuid4().hex
    one, other = authority.issue_cert(common_name="one"), authority.issue_cert(common_name="other")
    certificate, key, others, text = (f"{stem}{end}" for end in (".pem", ".key", ".other", ".txt"))
    one.cert_chain_pems[0].write_to_path(certificate)
    one.private_key_pem.write_to_path(key)
    other.private_key_pem.write_to_path(others)
    trustme.Blob(b"no key").write_to_path(text)
    files = {
        "no such file": (f"{stem}.nothing", key),
        "another key": (certificate, others),
        "no key": (certificate, text),
        "an encrypted key": (certificate, encrypted(directory, key)),
    }[case]
    made = DatabaseSettings(url="postgresql://app@127.0.0.1:1/app", ssl_cert=files[0], ssl_key=files[1])
    async with GuardedPool(made) as pool:
        with pytest.raises(ConfigurationError, match="and of its unencrypted private key"):
            await pool.ping()
        assert pool.stats()["circuit"] == "closed"


# Against a server without TLS


@pytest.mark.parametrize("sslmode", ["verify-full", "verify-ca", "require"])
async def test_a_server_without_tls_is_refused_before_anybody_is_named(server, role, proxy, trusted, sslmode):
    ca = None if sslmode == "require" else trusted
    text = await refusal(settings(server.url(user=role, port=proxy.port), sslmode, ca))
    assert "does not support TLS; enable TLS there, or set LAMBDA_DATABASE_SSLMODE=disable" in text
    assert (proxy.accepted, proxy.tls_requests, proxy.startups) == (1, 1, [])
    assert proxy.client_bytes == 8  # an SSLRequest, and not a byte more


async def test_loopback_is_plain_text_unless_asked(server, role, proxy):
    async with GuardedPool(DatabaseSettings(url=server.url(user=role, port=proxy.port))) as pool:
        await pool.ping()
    assert proxy.tls_requests == 0


# The context


@pytest.mark.parametrize("content", [None, "", "no certificate"])
async def test_a_useless_ca_file_is_a_matter_of_configuration(tmp_path, content):
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    async with GuardedPool(settings("postgresql://app@127.0.0.1:1/app", "verify-full", str(path))) as pool:
        with pytest.raises(ConfigurationError, match="must name a readable PEM file of CA certificates"):
            await pool.ping()
        assert pool.stats()["circuit"] == "closed"


def test_a_context_is_made_once_and_the_systems_store_is_read_only_where_it_is_needed(monkeypatch, trusted):
    loads: list[ssl.SSLContext] = []
    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", lambda context: loads.append(context))  # noqa: PLW0108  # bound
    url = "postgresql://app@db.example/app"
    contexts = TlsContexts()
    for made, loaded in (
        (settings(url, "disable"), 0),
        (settings(url, "require"), 0),
        (settings(url, "verify-full", trusted), 0),
        (settings(url, "verify-ca"), 1),
        (settings(url, "verify-full"), 2),
    ):
        first = contexts.context(made.target)
        assert contexts.context(made.target) is first
        assert len(loads) == loaded


@pytest.mark.parametrize("rounds", range(3, 13))
def test_a_connect_that_is_given_up_in_any_round_of_the_loop_leaves_no_noise(rounds):
    """TCP is connected, and nobody answers the request for TLS: asyncio would log that an error was never retrieved."""
    noise: list[object] = []

    async def give_up(url: str) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: noise.append(context))
        pool = GuardedPool(DatabaseSettings(url=url))
        asking = asyncio.create_task(pool.ping())
        for _ in range(rounds):
            await asyncio.sleep(0)
        pool.terminate()
        await asyncio.gather(asking, return_exceptions=True)
        for _ in range(20):  # all of it has to end by itself
            await asyncio.sleep(0)

    with socket.create_server(("127.0.0.1", 0)) as silent:
        asyncio.run(give_up(f"postgresql://app@127.0.0.1:{silent.getsockname()[1]}/app?sslmode=require"))
    gc.collect()
    assert noise == []
