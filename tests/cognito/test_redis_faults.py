"""What real Redis servers say when something is wrong: told with its remedy, never silent, and over when it is over."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from asyncdb_guard import CacheUnavailableError, ConfigurationError, TriggerFailedError
from asyncdb_guard.cognito import CacheKey, CognitoTriggers
from asyncdb_guard.cognito.caching.fail_fast import FailFastCache
from asyncdb_guard.cognito.caching.key import user_key
from asyncdb_guard.connect.redis import RedisUnavailableError
from asyncdb_guard.testing.ports import LOOPBACK
from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy
from tests.cognito.conftest import MakePool, returning, role_of
from tests.cognito.events import confirmation_event, id_claims, token_event
from tests.support.redis import Authority, RedisCluster, RedisServer, cache_on

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from asyncdb_guard.cognito.caching.redis import RedisCache

KEY = CacheKey("user", "one")
CLAIMS = '{"id":{"role":"x"}}'
GENERATION = "asyncdb_guard:claims:1:{user}"
PASSWORD = "s3cr3t-word"

pytestmark = pytest.mark.debian


@pytest.fixture(scope="module")
def shared_redis() -> Iterator[RedisServer]:
    with RedisServer("--enable-debug-command", "yes") as server:
        yield server


@pytest.fixture
def redis(shared_redis: RedisServer) -> RedisServer:
    """A healthy server without entries."""
    shared_redis.command("FLUSHALL")
    return shared_redis


async def round_trip(cache: RedisCache) -> bool:
    """Whether an entry can be written and read, and is gone after a `forget`."""
    await cache.store(KEY, CLAIMS, 60, (await cache.look_up(KEY)).generation)
    found = (await cache.look_up(KEY)).text is not None
    await cache.forget("user")
    return found and (await cache.look_up(KEY)).text is None


async def refusal(cache: RedisCache) -> CacheUnavailableError:
    """The error of a call, which names no address and no secret, not even in the variables of its frames."""
    with pytest.raises(CacheUnavailableError) as caught:
        await round_trip(cache)
    report = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert PASSWORD not in report
    assert LOOPBACK not in report
    return caught.value


# A failover


async def test_after_a_failover_the_same_call_reaches_the_new_primary() -> None:
    with RedisServer() as former, RedisServer() as new, TcpProxy(former.host, former.port) as name:
        cache = cache_on(f"redis://{name.host}:{name.port}")
        await asyncio.gather(*(cache.forget("user") for _ in range(8)))  # all connections lead to the first
        former.follow(new)
        name.target = (new.host, new.port)
        await cache.forget("user")
        (generation,) = new.command("GET", GENERATION)
        await asyncio.gather(*(cache.forget("user") for _ in range(8)))
        assert generation != new.command("GET", GENERATION)[0]
        assert (await cache.look_up(KEY)).generation == new.command("GET", GENERATION)[0]


async def test_a_replica_is_told_until_it_is_a_primary() -> None:
    with RedisServer() as primary, RedisServer() as replica:
        replica.follow(primary)
        cache = cache_on(replica.url)
        error = await refusal(cache)
        assert error.answered
        assert str(error) == (
            "The claims cache is a replica, which refuses writes (READONLY). Set claims_cache_url"
            " (LAMBDA_DATABASE_CLAIMS_CACHE_URL) to the endpoint of the primary."
        )
        replica.command("REPLICAOF", "NO", "ONE")
        assert await round_trip(cache)


async def test_a_replica_without_its_primary_is_told() -> None:
    with RedisServer() as primary, RedisServer("--replica-serve-stale-data", "no") as replica:
        replica.follow(primary)
        primary.kill()
        replica.wait_for("master_link_status:down", "INFO", "replication")
        assert "has lost its primary (MASTERDOWN). Repair the replication." in str(await refusal(cache_on(replica.url)))


# What a server refuses


@contextmanager
def configured(redis: RedisServer, name: str, value: str, back: str) -> Iterator[None]:
    redis.command("CONFIG", "SET", name, value)
    yield
    redis.command("CONFIG", "SET", name, back)


@contextmanager
def permitted(redis: RedisServer, *rules: str) -> Iterator[None]:
    redis.command("ACL", "SETUSER", "default", *rules)
    yield
    redis.command("ACL", "SETUSER", "default", "reset", "on", "nopass", "~*", "&*", "+@all")


REFUSALS: list[tuple[str, Callable[[RedisServer], Any], str]] = [
    ("OOM", lambda redis: configured(redis, "maxmemory", "1", "0"), "Raise its `maxmemory`"),
    ("NOREPLICAS", lambda redis: configured(redis, "min-replicas-to-write", "1", "0"), "Repair the replication"),
    ("NOPERM", lambda redis: permitted(redis, "-eval"), "Allow EVAL, GET, MGET and SET on"),
    ("NOPERM", lambda redis: permitted(redis, "resetkeys", "~other:*"), "Allow EVAL, GET, MGET and SET on"),
]


@pytest.mark.parametrize(("code", "fault", "remedy"), REFUSALS)
async def test_a_refusal_is_told_with_its_remedy_and_heals(
    redis: RedisServer, code: str, fault: Callable[[RedisServer], Any], remedy: str
) -> None:
    cache = cache_on(redis.url)
    assert await round_trip(cache)
    with fault(redis):
        error = await refusal(cache)
    assert f"({code}). " in str(error)
    assert remedy in str(error)
    assert error.answered
    assert await round_trip(cache)


async def test_a_login_that_is_missing_or_wrong_is_told() -> None:
    with RedisServer("--requirepass", PASSWORD) as redis:
        address = f"{redis.host}:{redis.port}"
        missing, wrong = cache_on(f"redis://{address}"), cache_on(f"redis://:{PASSWORD}-x@{address}")
        assert "requires a login (NOAUTH). Add the user and the password" in str(await refusal(missing))
        assert "refused the login (WRONGPASS). Correct the user and the password" in str(await refusal(wrong))
        assert await round_trip(cache_on(f"valkey://:{PASSWORD}@{address}"))


async def test_a_connection_that_has_lost_its_login_is_renewed() -> None:
    with RedisServer() as redis:
        redis.command("ACL", "SETUSER", "app", "on", f">{PASSWORD}", "~*", "+@all")
        cache = cache_on(f"redis://app:{PASSWORD}@{redis.host}:{redis.port}")
        assert await round_trip(cache)
        redis.command("ACL", "DELUSER", "app")  # ends its connections
        assert "(WRONGPASS)" in str(await refusal(cache))
        redis.command("ACL", "SETUSER", "app", "on", f">{PASSWORD}", "~*", "+@all")
        assert await round_trip(cache)


async def test_a_server_that_cannot_save_is_told() -> None:
    with RedisServer("--save", "3600 1", "--dir", "/proc") as redis:
        redis.command("SET", "a", "b")
        redis.command("BGSAVE")
        redis.wait_for("rdb_last_bgsave_status:err", "INFO", "persistence")
        assert "cannot save its data and therefore refuses writes (MISCONF). Check its disk" in str(
            await refusal(cache_on(redis.url))
        )


async def test_a_server_that_is_loading_is_told(tmp_path: Path) -> None:
    with RedisServer("--dir", str(tmp_path)) as redis:
        redis.command("EVAL", "for i = 1, 3000 do redis.call('SET', i, string.rep('x', 50)) end", "0")
        redis.command("SAVE")
    slowly = ("--key-load-delay", "2000", "--loading-process-events-interval-bytes", "1024")
    with RedisServer("--dir", str(tmp_path), *slowly) as redis:
        assert "is still loading its data (LOADING). Wait" in str(await refusal(cache_on(redis.url)))


async def test_a_server_that_is_busy_with_a_script_is_told() -> None:
    with RedisServer("--busy-reply-threshold", "1") as redis:
        running = await asyncio.create_subprocess_exec(
            "redis-cli", "-p", str(redis.port), "EVAL", "while true do end", "0", stdout=asyncio.subprocess.DEVNULL
        )
        cache = cache_on(redis.url)
        for _ in range(100):
            try:
                await cache.forget("user")
            except CacheUnavailableError as error:
                busy = str(error)
                break
        redis.command("SCRIPT", "KILL")
        await running.wait()
        assert "is busy with a script (BUSY). Look for a slow script" in busy
        assert await round_trip(cache)


async def test_a_server_without_a_free_connection_is_told() -> None:
    with RedisServer("--maxclients", "1") as redis:
        while True:  # until the connection that saw it start is gone
            with socket.create_connection((redis.host, redis.port)) as held:
                held.sendall(b"PING\r\n")
                if held.recv(64) == b"+PONG\r\n":
                    error = await refusal(cache_on(redis.url))
                    break
    assert "has no connection left. Raise its `maxclients`" in str(error)


async def test_a_database_that_does_not_exist_is_told(redis: RedisServer) -> None:
    error = await refusal(cache_on(f"redis://{redis.host}:{redis.port}/99"))
    assert "has no database of this number. Correct the number at the end of claims_cache_url" in str(error)


async def test_a_server_without_a_command_is_told() -> None:
    with RedisServer("--rename-command", "EVAL", "") as redis:
        assert "lacks a command. Allow EVAL, GET, MGET and SET" in str(await refusal(cache_on(redis.url)))


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[str]:
    """The URL of a server that gives the same answer to everything."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(4096):
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, LOOPBACK, 0)
    async with server:
        yield f"redis://{LOOPBACK}:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"-FROBNICATED s3cr3t-word\r\n", "gave an answer that this library does not know (FROBNICATED). Look it up"),
        (b"-ERR s3cr3t-word\r\n", "gave an answer that this library does not know (no code)."),
        (b"-s3cr3t-word\r\n", "gave an answer that this library does not know (no code)."),
        (b"-" + b"A" * 5000 + b"\r\n", "gave an answer that this library does not know (no code)."),
        (b"-ERR Error running script: -OOM no memory\r\n", "has no memory left for new entries (OOM)."),
        (b"-TRYAGAIN s3cr3t-word\r\n", "is a cluster that is moving its slots (TRYAGAIN)."),
        (b"HTTP/1.1 400 s3cr3t-word\r\n\r\n", "does not speak Redis's protocol (InvalidResponse). Check the host and"),
    ],
)
async def test_what_is_on_no_list_is_told_without_its_text(answer: bytes, told: str) -> None:
    async with answering(answer) as url:
        assert told in str(await refusal(cache_on(url)))


async def test_a_server_that_hangs_up_or_is_silent_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncdb_guard.connect.redis.opening._SOCKET_TIMEOUT", 0.05)
    with TcpProxy(LOOPBACK, 1) as path:
        url = f"redis://{path.host}:{path.port}"
        path.refuse = True
        error = await refusal(cache_on(url))
        assert "is unavailable (ConnectionError). Check the server, the network and claims_cache_url" in str(error)
        assert not error.answered
        path.refuse, path.hang = False, True
        assert "did not answer in time (TimeoutError). Check its load" in str(await refusal(cache_on(url)))


def test_calls_that_fail_together_replace_the_client_once(redis: RedisServer) -> None:
    client, together, clients = cache_on(redis.url)._client, threading.Barrier(2), []

    def fail(client: Any) -> None:
        clients.append(client)
        together.wait()
        raise RuntimeError(PASSWORD)

    with ThreadPoolExecutor(2) as threads:
        for failed in [threads.submit(client.run, fail) for _ in range(2)]:
            with pytest.raises(RedisUnavailableError, match=r"is unavailable \(RuntimeError\)"):
                failed.result()
    assert clients[0] is clients[1]
    assert client.run(lambda client: client is not clients[0] and client.ping())


# Clusters


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    with RedisCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


async def test_a_cluster_serves_every_user(cluster: RedisCluster, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    cache = cache_on(cluster.url)
    keys = [CacheKey(f"user-{number}", "one") for number in range(16)]
    for key in keys:
        assert await cache.store(key, CLAIMS, 60, (await cache.look_up(key)).generation) is not None
        assert (await cache.look_up(key)).text is not None
    assert all(int(node.command("DBSIZE")[0]) > 2 for node in cluster.nodes)
    for key in keys:
        await cache.forget(key.user)
        assert (await cache.look_up(key)).text is None
    assert caplog.text.count("The claims cache is a cluster.") == 1


async def test_sign_ins_work_with_a_cluster(
    make_pool: MakePool, cluster: RedisCluster, heard: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FailFastCache, "CALL_TIMEOUT", 5.0)  # for a slow machine, as the first call asks for the nodes
    triggers = CognitoTriggers(make_pool(claims_cache_url=cluster.url), claims=returning({"a": 1}))
    for _ in range(2):
        for number in range(8):
            assert id_claims(await triggers.load_claims(token_event("2", sub=f"s{number}"))) == {"a": 1}
    assert heard.count("cache_miss") == 8
    assert heard.count("cache_hit") == 8


async def test_a_cluster_has_no_other_database(cluster: RedisCluster) -> None:
    error = await refusal(cache_on(cluster.url.replace("/0", "/1")))
    assert "is a cluster, which has only database 0. Remove the number from claims_cache_url" in str(error)


async def test_a_cluster_with_slots_that_nobody_serves_is_told(tmp_path: Path) -> None:
    options = ("--cluster-enabled", "yes", "--cluster-config-file", str(tmp_path / "nodes"))
    with RedisServer(*options) as redis:
        error = await refusal(cache_on(redis.url))
    assert "is a cluster with slots that no node serves (CLUSTERDOWN). Repair the cluster." in str(error)


async def test_what_was_a_cluster_and_is_one_server_now_works(cluster: RedisCluster, redis: RedisServer) -> None:
    node = cluster.nodes[0]
    with TcpProxy(node.host, node.port) as name:
        cache = cache_on(f"redis://{name.host}:{name.port}")
        for number in range(8):
            await cache.forget(f"user-{number}")
        name.target = (redis.host, redis.port)
        for each in cluster.nodes:
            each.command("CLIENT", "KILL", "TYPE", "normal")
        cache._client._replace(cache._client._client, is_cluster=None)  # as the nodes' own addresses still answer
        assert await round_trip(cache)
        assert redis.command("EXISTS", GENERATION) == ["1"]


# What was not forgotten, and what must not come back


async def test_a_forget_that_redis_did_not_do_raises(make_pool: MakePool, redis: RedisServer, sub: str) -> None:
    with TcpProxy(redis.host, redis.port) as path:
        settings = {"claims_cache_url": f"redis://{path.host}:{path.port}"}
        triggers = CognitoTriggers(make_pool(**settings), claims=role_of, on_unavailable="stale")
        other = CognitoTriggers(make_pool(claims_cache_url=redis.url), claims=role_of)
        await triggers.load_claims(token_event("2", sub=sub))
        path.refuse = True
        path.reset_all()
        with pytest.raises(CacheUnavailableError, match=r"could not be deleted. Call forget\(\) again"):
            await triggers.forget(sub)
        path.refuse = False
        await triggers.forget(sub)
        assert (await cache_on(redis.url).look_up(CacheKey(user_key(sub), ""))).generation
        assert id_claims(await other.load_claims(token_event("2", sub=sub))) == {"role": "admin"}


async def test_a_user_whom_redis_did_not_forget_is_loaded_anew(
    make_pool: MakePool, redis: RedisServer, heard: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncdb_guard.cognito.caching.fail_fast._Backoff.FIRST", 0.01)
    monkeypatch.setattr("asyncdb_guard.cognito.caching.fail_fast._Backoff.MAX", 0.01)
    with TcpProxy(redis.host, redis.port) as path:
        settings = {"claims_cache_url": f"redis://{path.host}:{path.port}"}
        triggers = CognitoTriggers(make_pool(**settings), claims=returning({"a": 1}))
        await triggers.load_claims(token_event("2", sub="s"))
        path.refuse = True
        path.reset_all()
        with pytest.raises(CacheUnavailableError):
            await triggers.forget("s")
        path.refuse = False
        await asyncio.sleep(0.02)
        before = redis.command("GET", f"asyncdb_guard:claims:1:{{{user_key('s')}}}")
        await triggers.load_claims(token_event("2", sub="s"))
        assert heard.count("cache_miss") == 2
        assert redis.command("GET", f"asyncdb_guard:claims:1:{{{user_key('s')}}}") != before


async def test_provisioning_that_could_not_forget_fails_and_may_run_again(
    make_pool: MakePool, redis: RedisServer, sub: str, caplog: pytest.LogCaptureFixture
) -> None:
    with TcpProxy(redis.host, redis.port) as path:
        pool = make_pool(claims_cache_url=f"redis://{path.host}:{path.port}")
        triggers = CognitoTriggers(pool, provision="UPDATE app_user SET runs = runs + 1 WHERE cognito_sub = $1")
        path.refuse = True
        with pytest.raises(TriggerFailedError):
            await triggers.provision_user(confirmation_event(sub))
        assert (
            "provision_user failed: The user's cached claims could not be deleted. Call forget() again." in caplog.text
        )
        path.refuse = False
        await triggers.provision_user(confirmation_event(sub))
        assert await pool.fetchval("SELECT runs FROM app_user") == 2


async def test_a_load_in_another_environment_does_not_bring_back_what_was_forgotten(
    make_pool: MakePool, redis: RedisServer
) -> None:
    loading, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(conn: Any, user: Any) -> Any:
        loading.set()
        await go_on.wait()
        return {"role": "admin"}

    settings = {"claims_cache_url": redis.url}
    one = CognitoTriggers(make_pool(**settings), claims=slowly, on_unavailable="stale")
    other = CognitoTriggers(make_pool(**settings), claims=returning({"role": "none"}))
    sign_in = asyncio.create_task(one.load_claims(token_event("2", sub="s")))
    await loading.wait()
    await other.forget("s")
    go_on.set()
    assert id_claims(await sign_in) == {"role": "admin"}
    assert [name for name in redis.command("KEYS", "*") if not name.endswith("}")] == []


# A cache that is a little sick


async def test_a_burst_of_cached_users_is_no_load(
    make_pool: MakePool, redis: RedisServer, heard: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FailFastCache, "QUEUE_TIMEOUT", 5.0)  # coverage slows all of this down
    with TcpProxy(redis.host, redis.port) as path:
        settings = {"claims_cache_url": f"redis://{path.host}:{path.port}"}
        triggers = CognitoTriggers(make_pool(**settings), claims=returning({"a": 1}))
        events = [token_event("2", sub=f"s{number}") for number in range(400)]
        for event in events:
            await triggers.load_claims(event)
        path.latency = 0.0005
        heard.clear()
        await asyncio.gather(*map(triggers.load_claims, events))
        assert heard == ["cache_hit"] * 400


@pytest.mark.parametrize(
    "entry", ["nonsense", "[]", "5", "{}", '{"claims": {}}', "[" * 5000, '{"generation": "", "claims": 1}', "\xff", ""]
)
async def test_a_bad_entry_is_one_users_miss(redis: RedisServer, entry: str, caplog: pytest.LogCaptureFixture) -> None:
    cache = FailFastCache(cache_on(redis.url))
    somebody = CacheKey("somebody", "one")
    for key in (KEY, somebody):
        await cache.store(key, CLAIMS, 60, "")
    redis.command("SET", f"{GENERATION}:one", entry)
    found = await cache.look_up(KEY)
    assert not found.text
    assert (await cache.look_up(somebody)).text is not None
    assert await cache.store(KEY, CLAIMS, 60, found.generation) is not None
    assert (await cache.look_up(KEY)).text is not None
    assert caplog.text == ""


@pytest.mark.parametrize("name", [GENERATION, f"{GENERATION}:one"])
async def test_a_key_of_another_type_is_one_users_miss(redis: RedisServer, name: str) -> None:
    cache = FailFastCache(cache_on(redis.url))
    redis.command("LPUSH", name, "a")
    found = await cache.look_up(KEY)
    assert found.text is None
    assert await cache.store(KEY, CLAIMS, 60, found.generation) is not None
    assert (await cache.look_up(KEY)).text is not None
    await cache.forget("user")
    assert (await cache.look_up(KEY)).text is None


# TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


async def test_a_server_of_ones_own_authority_is_trusted_if_the_setting_says_so(authority: Authority) -> None:
    with authority.server("no") as redis:
        for scheme in ("rediss", "valkeys"):
            url = f"{scheme}://{redis.host}:{redis.port}"
            assert await round_trip(cache_on(url, claims_cache_ssl_root_cert=authority.ca))
        error = await refusal(cache_on(url))
        assert "has a certificate that is not trusted" in str(error)
        assert "Set claims_cache_ssl_root_cert (LAMBDA_DATABASE_CLAIMS_CACHE_SSL_ROOT_CERT) to its CA" in str(error)


async def test_a_server_that_asks_for_a_client_certificate_gets_it(authority: Authority) -> None:
    with authority.server("yes") as redis:
        url = f"rediss://{redis.host}:{redis.port}"
        trust = {"claims_cache_ssl_root_cert": authority.ca}
        one = {"claims_cache_ssl_cert": authority.both}
        two = {"claims_cache_ssl_cert": authority.cert, "claims_cache_ssl_key": authority.key}
        for files in (one, two):
            assert await round_trip(cache_on(url, **trust, **files))
        assert "the client certificate" in str(await refusal(cache_on(url, **trust)))


async def test_plain_text_where_tls_is_expected_and_the_reverse_are_told(
    redis: RedisServer, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncdb_guard.connect.redis.opening._CONNECT_TIMEOUT", 0.05)
    monkeypatch.setattr("asyncdb_guard.connect.redis.opening._SOCKET_TIMEOUT", 0.05)
    error = await refusal(cache_on(f"rediss://{redis.host}:{redis.port}"))
    assert "with rediss://, whether it uses TLS" in str(error)
    with authority.server("no") as server:
        error = await refusal(cache_on(f"redis://{server.host}:{server.port}"))
        assert "with TLS, rediss:// and the client certificate" in str(error)


async def test_another_protocol_where_tls_is_expected_is_told() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, LOOPBACK, 0) as server:
        error = await refusal(cache_on(f"rediss://{LOOPBACK}:{server.sockets[0].getsockname()[1]}"))
    assert "and this client do not agree on TLS" in str(error)
    assert "Check redis:// or rediss:// in claims_cache_url (LAMBDA_DATABASE_CLAIMS_CACHE_URL)" in str(error)


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("claims_cache_ssl_root_cert", "must name a readable PEM file of CA certificates"),
        ("claims_cache_ssl_cert", "must name readable PEM files of a client certificate and its key"),
    ],
)
@pytest.mark.parametrize("content", [None, "nonsense"])
def test_a_file_of_no_use_is_a_fault_of_the_settings(
    tmp_path: Path, setting: str, text: str, content: str | None
) -> None:
    path = tmp_path / "file.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigurationError, match=text):
        cache_on("rediss://cache.example", **{setting: str(path)})
