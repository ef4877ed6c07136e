"""`lambda_handler`, seen from its caller, from the real awslambdaric, and from the server."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import inspect
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
import traceback
import weakref
from collections import UserDict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import asyncpg
import psutil
import pytest
import snapshot_restore_py
from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.utilities.typing import LambdaContext

from asyncdb_guard import DatabaseSettings, GuardedPool
from asyncdb_guard.cognito import CognitoTriggers
from asyncdb_guard.errors import ConfigurationError, ConnectFailedError, TriggerEventError, TriggerFailedError
from asyncdb_guard.pool.core import PoolCore
from asyncdb_guard.runtime import lambda_handler
from asyncdb_guard.testing import id_claims, token_event
from asyncdb_guard.testing.lambda_runtime.api import RuntimeApi
from asyncdb_guard.testing.lambda_runtime.process import LambdaRuntime as Environment
from tests.support.program import unmeasured

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from asyncdb_guard.testing.postgres.observer import Observer
    from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy
    from tests.support.eventually import Eventually

REPOSITORY = Path(__file__).parent.parent

SAFE = "The request could not be completed"

COGNITO = {"triggerSource": "PreSignUp_SignUp"}

SECRET = "jane@example.com"


# the plain function


@lambda_handler
async def echo(event: object, context: object = None) -> object:
    """Give the event back."""
    return event


class Greeter:
    @lambda_handler
    async def unbound(self, event: object) -> None: ...

    async def greet(self, event: str, context: object = None) -> str:
        """Greet by name."""
        return f"Hello {event}"


def test_becomes_a_plain_function_that_still_is_itself() -> None:
    """Name, documentation and signature are the coroutine function's, which is one attribute away."""
    assert echo({"a": 1}, None) == {"a": 1}
    assert not inspect.iscoroutinefunction(echo)
    assert echo.__name__ == "echo"
    assert echo.__doc__ == "Give the event back."
    assert inspect.iscoroutinefunction(inspect.unwrap(echo))
    assert str(inspect.signature(echo)) == "(event: 'object', context: 'object' = None) -> 'object'"


def test_takes_bound_methods_and_partials() -> None:
    """A method is the usual shape of a trigger; a partial has no name of its own."""

    async def greet(greeting: str, event: str, context: object) -> str:
        return f"{greeting} {event}"

    greeter = Greeter()
    handler = lambda_handler(greeter.greet)
    assert handler("Jane") == "Hello Jane"
    assert handler.__name__ == "greet"
    assert lambda_handler(functools.partial(greet, "Good day"))("Jane", None) == "Good day Jane"


def test_is_a_decorator_with_arguments() -> None:
    """With arguments it waits for the coroutine function."""

    @lambda_handler(expose=KeyError)
    async def handler(event: object, context: object) -> object:
        return event

    assert handler(1, None) == 1
    assert handler.__name__ == "handler"


def sync(event: object, context: object) -> None: ...


async def generator(event: object, context: object) -> Any:
    yield event


async def narrow(event: object) -> None: ...


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        (sync, "which sync is not. Define it with `async def`"),
        (echo, "which echo is not. Define it with `async def`, and apply sync decorators around"),
        (generator, "which generator is not"),
        (None, "which NoneType is not"),
        ("module.handler", "which str is not"),
        (narrow, "Give narrow these two parameters"),
    ],
)
def test_refuses_what_is_no_handler(wrong: Any, remedy: str) -> None:
    """Already when it is wrapped, so that the deployment fails and not the first user."""
    with pytest.raises(TypeError, match=remedy) as refused:
        lambda_handler(wrong)
    assert refused.value.__context__ is None


# one loop


@lambda_handler
async def which_loop(event: object, context: object = None) -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


def test_all_handlers_share_one_loop() -> None:
    """For their pools' sake, over many calls, whichever handler is called."""

    @lambda_handler
    async def other(event: object, context: object) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    assert {which_loop({}) for _ in range(5)} == {other({}, None)}


def test_wrapping_makes_no_loop() -> None:
    """The loop is made by the first call, and the import leaves the thread's current loop alone."""
    said = python("""
        import asyncio
        made = []
        new_event_loop = asyncio.new_event_loop
        asyncio.new_event_loop = lambda: made.append(1) or new_event_loop()

        from asyncdb_guard.runtime import lambda_handler

        @lambda_handler
        async def handler(event, context): return event

        print(len(made), handler(1, 2), handler(1, 2), len(made))
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # of policies, since Python 3.14
        print(asyncio.get_event_loop_policy()._local._loop)
    """)
    assert said == "0 1 1 1\nNone\n"


async def test_refuses_to_run_inside_a_loop() -> None:
    """It says what to do in its place."""
    with pytest.raises(RuntimeError, match="await the coroutine function instead, which is the handler's __wrapped__"):
        echo({})
    assert await inspect.unwrap(echo)({"a": 1}) == {"a": 1}


def test_refuses_a_second_call_at_the_same_time() -> None:
    """Another thread may not step into the loop, and the first call ends as if nobody had tried."""
    refused: list[RuntimeError] = []

    def intrude() -> None:
        with pytest.raises(RuntimeError, match="runs its own event loop") as error:
            echo({})
        refused.append(error.value)

    @lambda_handler
    async def handler(event: object, context: object = None) -> object:
        await asyncio.to_thread(intrude)
        return event

    assert handler(1) == 1
    assert len(refused) == 1


def test_sees_the_callers_context_and_leaks_none() -> None:
    """Variables set by a sync decorator are seen; those set in one invocation are gone in the next."""
    outer = contextvars.ContextVar("outer", default="")
    inner = contextvars.ContextVar("inner", default="")

    @lambda_handler
    async def handler(event: str, context: object = None) -> tuple[str, str]:
        seen = outer.get(), inner.get()
        inner.set(event)
        return seen

    for user in "jane", "joan":
        outer.set(user)
        assert handler(user) == (user, "")


def test_leaves_the_handlers_tasks_alone() -> None:
    """A task left behind goes on in the next call."""
    left: list[asyncio.Task[int]] = []

    async def background() -> int:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return 7

    @lambda_handler
    async def handler(event: str, context: object = None) -> int | None:
        if event == "leave":
            left.append(asyncio.create_task(background()))
            return None
        return await left[0]

    assert handler("leave") is None
    assert handler("wait") == 7


@pytest.mark.slow
def test_the_loop_is_closed_at_exit() -> None:
    """Without a warning or a word, whatever the handler has left: a task, a generator, a thread."""
    said = python("""
        import asyncio
        from asyncdb_guard.runtime import lambda_handler

        async def endless():
            while True:
                yield await asyncio.to_thread(int)

        async def background():
            try:
                await asyncio.sleep(60)
            finally:
                print("cleaned up")

        @lambda_handler
        async def handler(event, context):
            globals()["left"] = endless(), asyncio.create_task(background())
            return await anext(left[0])

        print(handler(1, 2))
    """)
    assert said == "0\ncleaned up\n"


@pytest.mark.slow
def test_a_loop_policy_counts() -> None:
    """Whoever sets uvloop's policy gets uvloop, and forks as safely."""
    chosen = "import asyncio, uvloop\nasyncio.set_event_loop_policy(uvloop.EventLoopPolicy())\n"
    assert python(chosen + textwrap.dedent(FORK), "-Wignore") == "uvloop 0 True\n"


@pytest.mark.slow
def test_a_forked_child_has_a_loop_of_its_own() -> None:
    """The parent's loop still wakes up after children, used or not, have come to their ends."""
    assert python(FORK, "-Wignore") == "asyncio.unix_events 0 True\n"


# Run without warnings as errors: those would end a finaliser before it does its harm.
FORK = """
    import asyncio, os, sys, threading
    from asyncdb_guard.runtime import lambda_handler

    @lambda_handler
    async def handler(event, context):
        return asyncio.get_running_loop()

    @lambda_handler
    async def is_awake(event, context):
        loop, woken = asyncio.get_running_loop(), asyncio.Event()
        threading.Timer(0.01, loop.call_soon_threadsafe, (woken.set,)).start()
        await asyncio.wait_for(woken.wait(), 5)
        return True

    failures, loop = 0, None
    for used in False, True, False:
        child = os.fork()
        if child == 0:
            sys.exit(handler(1, 2) is loop if used else 0)
        failures += os.waitpid(child, 0)[1]
        loop = handler(1, 2)
    print(type(loop).__module__, failures, is_awake(1, 2))
"""


# errors


class Rejected(Exception):
    pass


def raise_group() -> None:
    raise ExceptionGroup(SECRET, [KeyError(SECRET), OSError(SECRET)])


def raise_chain() -> None:
    try:
        raise asyncpg.UniqueViolationError(SECRET)
    except asyncpg.UniqueViolationError as error:
        raise Rejected(SECRET) from error


def raise_circle() -> None:
    error, other = Rejected(SECRET), KeyError(SECRET)
    error.__cause__, other.__cause__ = other, error
    raise error


def raise_configuration_error() -> None:
    DatabaseSettings(url="postgresql://user@127.0.0.1/none", pool_max=0)


def raiser(kind: type[BaseException]) -> Callable[[], None]:
    def raise_it() -> None:
        raise kind(SECRET)

    return raise_it


@pytest.mark.parametrize(
    ("fail", "told"),
    [
        (raiser(Rejected), ["tests.test_runtime.Rejected at", "(raise_it)"]),
        (raiser(asyncio.CancelledError), ["failed: asyncio.exceptions.CancelledError at"]),
        (raiser(SystemExit), ["failed: SystemExit at"]),
        (raiser(KeyboardInterrupt), ["failed: KeyboardInterrupt at"]),
        (raiser(BaseException), ["failed: BaseException at"]),
        (raise_group, ["failed: ExceptionGroup at", "; because of KeyError; because of OSError"]),
        (raise_chain, ["Rejected at", "; because of asyncpg.exceptions.UniqueViolationError [23505] at"]),
        (raise_circle, ["Rejected at", "; because of KeyError"]),
        (
            raise_configuration_error,
            ["failed: pool_max (LAMBDA_DATABASE_POOL_MAX) must be a whole number"],
        ),
        (raiser(ConfigurationError), ["ConfigurationError at"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("in_lambda", [True, False])
def test_cognito_sees_one_safe_error_for_all_that_escapes(
    fail: Callable[[], None],
    told: list[str],
    in_lambda: bool,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The caller reads a fixed text; the log has type and place, never the error's own text; the loop lives on."""
    if in_lambda:
        monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "pre-sign-up")

    @lambda_handler
    async def handler(event: object, context: object = None) -> None:
        fail()

    with pytest.raises(TriggerFailedError) as raised:
        handler(COGNITO)
    assert type(raised.value) is TriggerFailedError
    assert str(raised.value) == SAFE
    assert (raised.value.__cause__ is None) == in_lambda
    assert raised.value.__context__ is None
    (record,) = caplog.records
    assert (record.name, record.levelno, record.exc_info) == ("asyncdb_guard", logging.ERROR, None)
    for words in (handler.__qualname__, __file__, fail.__name__, *told):
        assert words in record.getMessage()
    assert SECRET not in caplog.text
    assert echo(1) == 1


def test_a_triggers_own_error_passes(caplog: pytest.LogCaptureFixture) -> None:
    """Its text is fixed and safe already, and its cause was logged where it was known."""

    @lambda_handler
    async def handler(event: object, context: object = None) -> None:
        raise TriggerEventError("No request.userAttributes.sub")

    with pytest.raises(TriggerEventError, match=r"^No request\.userAttributes\.sub$"):
        handler({})
    assert not caplog.records


def test_exposed_errors_pass(caplog: pytest.LogCaptureFixture) -> None:
    """A text that the author wrote for the end user arrives; everything else stays inside."""

    @lambda_handler(expose=(Rejected, KeyError))
    async def handler(event: dict[str, Any], context: object = None) -> None:
        raise event["error"]

    with pytest.raises(Rejected, match="no stock"):
        handler(COGNITO | {"error": Rejected("no stock")})
    assert not caplog.records
    with pytest.raises(TriggerFailedError):
        handler(COGNITO | {"error": OSError(SECRET)})


class Sqs(UserDict[str, Any]):
    """A typed event, as Powertools has them."""


@pytest.mark.parametrize("event", [{"Records": []}, Sqs(Records=[]), [], None, "text"])
def test_other_invokers_get_the_handlers_own_error(event: object, caplog: pytest.LogCaptureFixture) -> None:
    """A state machine catches it by its type; the runtime logs it, with the author's frames alone."""

    @lambda_handler
    async def handler(event: object, context: object = None) -> None:
        await asyncio.sleep(0)
        raise_chain()

    with pytest.raises(Rejected, match=SECRET) as raised:
        handler(event)
    assert isinstance(raised.value.__cause__, asyncpg.UniqueViolationError)
    assert not caplog.records
    frames = [frame.f_code.co_name for frame, _ in traceback.walk_tb(raised.value.__traceback__)]
    assert frames == [
        "test_other_invokers_get_the_handlers_own_error", "invoke", "handler", "raise_chain"
    ]  # fmt: skip


def test_an_error_of_ours_points_at_the_authors_call() -> None:
    pool = GuardedPool(DatabaseSettings(url="postgresql://nobody@127.0.0.1:1/none"))

    @lambda_handler
    async def handler(event: object, context: object = None) -> None:
        await pool.fetch("SELECT 1")

    with pytest.raises(ConnectFailedError) as raised:
        handler({})
    frames = [frame.f_code.co_name for frame, _ in traceback.walk_tb(raised.value.__traceback__)]
    assert frames == ["test_an_error_of_ours_points_at_the_authors_call", "invoke", "handler"]


def test_what_has_no_frame_of_the_authors_keeps_its_own() -> None:
    """Where a trigger is the handler, all frames are ours."""
    handler = lambda_handler(CognitoTriggers(GuardedPool()).load_claims)
    with pytest.raises(TriggerFailedError) as raised:
        handler({})
    assert traceback.extract_tb(raised.value.__traceback__)[-1].name == "run_with_public_errors"


class Unprintable(Exception):
    def __str__(self) -> str:
        raise KeyError(SECRET)


@pytest.mark.parametrize("error", [SystemExit(SECRET), ValueError("\ud800"), Unprintable()])
def test_what_would_end_the_process_is_replaced_for_every_invoker(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    @lambda_handler
    async def handler(event: object, context: object = None) -> None:
        raise error

    with pytest.raises(TriggerFailedError, match=SAFE) as raised:
        handler({})
    assert raised.value.__cause__ is error
    assert f"failed: {type(error).__qualname__}" in caplog.text.replace("tests.test_runtime.", "")
    assert SECRET not in caplog.text


def test_a_handler_that_cancelled_itself_has_failed() -> None:
    """A cancellation that never found an await to arrive at ends the task all the same."""

    @lambda_handler
    async def handler(event: object, context: object = None) -> int:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return 1

    with pytest.raises(TriggerFailedError):
        handler({})


def test_a_stray_exit_ends_the_call_and_leaves_nothing_behind() -> None:
    """SystemExit in another task or callback stops the loop; the handler is cancelled and does not go on later."""
    steps: list[str] = []

    @lambda_handler
    async def handler(event: object, context: object = None) -> None:
        asyncio.get_running_loop().call_soon(sys.exit)
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            steps.append("cancelled")
            raise

    with pytest.raises(TriggerFailedError):
        handler({})
    assert steps == ["cancelled"]
    assert echo(1) == 1
    assert steps == ["cancelled"]


def test_an_error_in_a_callback_of_the_authors_is_logged_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """It cost the loop no wake-up, so that the call goes on and the next one has the same loop."""
    loops: list[asyncio.AbstractEventLoop] = []

    @lambda_handler
    async def handler(event: object, context: object = None) -> object:
        loops.append(asyncio.get_running_loop())
        loops[-1].call_soon(lambda: 1 / 0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return event

    assert [handler(1), handler(2)] == [1, 2]
    assert loops[0] is loops[1]
    assert caplog.text.count("ZeroDivisionError") >= 2


def test_a_handler_that_suppresses_its_cancellation_does_not_delay_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it go on in the thread that would collect it, when its coroutine is closed."""
    monkeypatch.setattr("asyncdb_guard.runtime.process._CANCEL_TIMEOUT", 0.05)
    end = time.monotonic() + 20
    over = False

    @lambda_handler
    async def handler(event: object, context: object = None) -> None:
        asyncio.get_running_loop().call_soon(sys.exit)
        while not over and time.monotonic() < end:
            with contextlib.suppress(BaseException):
                await asyncio.sleep(0.01)

    with pytest.raises(TriggerFailedError):
        handler({})
    gc.collect()
    assert time.monotonic() < end
    over = True  # for what is left of it at the end of the process
    assert echo(1) == 1


def test_a_call_whose_end_is_lost_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where an exception of a signal handler came between two steps of asyncio's."""
    monkeypatch.setattr("asyncdb_guard.runtime.process._WATCH_INTERVAL", 0.02)

    @lambda_handler
    async def handler(event: object, context: object = None) -> object:
        task = asyncio.current_task()
        assert task is not None
        task.remove_done_callback(asyncio.base_events._run_until_complete_cb)  # type: ignore[attr-defined]
        return event

    assert handler({}) == {}


def test_a_timeout_that_is_lost_does_not_hang_its_call(url: str, caplog: pytest.LogCaptureFixture) -> None:
    class Alarm(Exception):
        pass

    def trace(frame: Any, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_name == "_time_out":
            sys.setprofile(None)
            raise Alarm

    pool = GuardedPool(DatabaseSettings(url=url))

    @lambda_handler
    async def handler(event: object, context: object = None) -> object:
        async with pool.acquire():
            sys.setprofile(trace)
            await asyncio.create_task(pool.ping(timeout=0.02))

    @lambda_handler
    async def ask(event: object, context: object = None) -> object:
        return await pool.fetchval("SELECT 1")

    started = time.monotonic()
    try:
        with pytest.raises((RuntimeError, asyncio.CancelledError, TriggerFailedError)):
            handler({})
    finally:
        sys.setprofile(None)
    assert time.monotonic() - started < 2
    assert ask({}) == 1
    assert "Alarm" in caplog.text


@pytest.mark.parametrize("error", [TriggerFailedError, KeyError])
def test_what_a_failed_call_held_is_not_left_to_the_garbage_collector(error: type[Exception]) -> None:
    class Held:
        pass

    held: list[weakref.ref[Held]] = []

    @lambda_handler
    async def handler(event: object, context: object = None) -> None:
        one = Held()
        held.append(weakref.ref(one))
        raise error

    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(TriggerFailedError):
            handler(COGNITO)
        assert held[0]() is None
    finally:
        gc.enable()


# Powertools


@pytest.mark.filterwarnings("ignore:No application metrics to publish")
def test_composes_with_powertools(capsys: pytest.CaptureFixture[str]) -> None:
    """Their sync decorators go around; the request id is in the coroutine's log lines, and the metric is written."""
    logger, metrics = Logger(service="sign-in"), Metrics(namespace="SignIn", service="sign-in")

    @logger.inject_lambda_context
    @metrics.log_metrics
    @lambda_handler
    async def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
        await asyncio.sleep(0)
        logger.warning("seen")
        metrics.add_metric(name="Seen", unit="Count", value=1)
        return event

    class Context:
        function_name = "sign-in"
        memory_limit_in_mb = 128
        invoked_function_arn = "arn:aws:lambda:eu-west-1:123456789012:function:sign-in"
        aws_request_id = "request-7"

    assert handler({"a": 1}, Context()) == {"a": 1}
    written = capsys.readouterr().out
    assert '"function_request_id":"request-7"' in written
    assert '"Seen":[1.0]' in written


TYPED = """
    from aws_lambda_powertools.utilities.data_classes import event_source
    from aws_lambda_powertools.utilities.data_classes.cognito_user_pool_event import PreTokenGenerationTriggerEvent
    from asyncdb_guard.cognito import CognitoTriggers

    async def claims(conn, user):
        return {"role": user.client_metadata["role"]}

    pool = GuardedPool()
    triggers = CognitoTriggers(pool, claims=claims, on_unavailable="deny")

    @event_source(data_class=PreTokenGenerationTriggerEvent)
    @lambda_handler
    async def handler(event, context):
        assert event.user_pool_id
        if event.request.client_metadata.get("fail"):
            raise ValueError("jane@example.com")
        return await triggers.load_claims(event, context)
"""


def test_powertools_typed_events_around_a_trigger(deploy: Deploy, url: str) -> None:
    """It is answered as the plain event is, and it is Cognito's, so that errors stay inside."""
    environment = deploy(TYPED, LAMBDA_DATABASE_URL=url, LAMBDA_DATABASE_CONNECT_TIMEOUT_MS="4000")
    event = token_event(2, sub="s", metadata={"role": "admin"})
    answer = environment.invoke(event)
    assert answer.error is None, environment.logs
    assert id_claims(answer.payload) == {"role": "admin"}
    assert {name: answer.payload[name] for name in event if name != "response"} == {
        name: event[name] for name in event if name != "response"
    }
    failed = environment.invoke(token_event(2, sub="s", metadata={"fail": "1"}))
    assert failed.error is not None
    assert failed.error["errorMessage"] == SAFE


def test_powertools_inside_are_refused() -> None:
    """Their decorator makes a sync function of the handler, and Lambda would be given a coroutine."""
    with pytest.raises(TypeError, match="apply sync decorators around"):

        @lambda_handler
        @Logger(service="sign-in").inject_lambda_context
        async def handler(event: object, context: object) -> None: ...


# the real runtime


START_TIMEOUT = 40.0
"""Seconds in which a process is up, whatever else the machine does."""


class Deploy(Protocol):
    def __call__(self, source: str, **env: str) -> Environment: ...


@pytest.fixture
def deploy(tmp_path: Path) -> Iterator[Deploy]:
    """Start the function `handler` of a module with this source in an awslambdaric process, and wait until it is up.

    On a busy machine the start takes many seconds, which are no part of what a test bounds.
    """
    with RuntimeApi.start() as api:

        def deploy(source: str, **env: str) -> Environment:
            (tmp_path / "function.py").write_text(IMPORTS + textwrap.dedent(source))
            path = f"{tmp_path}{os.pathsep}{REPOSITORY}"
            threads = {"AWS_EXECUTION_ENV": "AWS_Lambda_python3.12"}
            environment = api.environment("function.handler", env={"PYTHONPATH": path} | threads | env, cwd=tmp_path)
            environment.wait_ready(START_TIMEOUT)
            return environment

        yield deploy


IMPORTS = """
import asyncio, os, signal, sys, time
from asyncdb_guard import GuardedPool
from asyncdb_guard.runtime import lambda_handler
"""


def test_lives_on_under_awslambdaric(deploy: Deploy) -> None:
    """Hostile calls are answered, the fatal ones with the safe text, and the same process and loop answer the next."""
    environment = deploy("""
        @lambda_handler
        async def handler(event, context):
            if "loop" not in globals():
                globals()["loop"] = asyncio.get_running_loop()
            if event["raise"]:
                raise eval(event["raise"])(event.get("text", "jane@example.com"))
            return os.getpid(), loop is asyncio.get_running_loop()
    """)
    fatal = [
        {"raise": error} for error in ("asyncio.CancelledError", "SystemExit", "KeyboardInterrupt", "BaseException")
    ]
    for event in *fatal, {"raise": "ValueError", "text": "\ud800"}, COGNITO | {"raise": "ValueError"}:
        answer = environment.invoke(event)
        assert answer.error is not None
        assert (answer.error["errorType"], answer.error["errorMessage"]) == ("TriggerFailedError", SAFE)
        assert "jane" not in str(answer.error)
        for _ in range(5):
            assert environment.invoke({"raise": ""}).payload == [environment.pid, True]
    assert "failed: SystemExit at" in environment.stdout
    assert "jane" not in environment.stdout + environment.stderr
    own = environment.invoke({"raise": "ValueError"}).error
    assert own is not None
    assert (own["errorType"], own["errorMessage"]) == ("ValueError", "jane@example.com")
    assert [frame for frame in own["stackTrace"] if "asyncdb_guard" in frame and "invoke" not in frame] == []


def test_any_handler_prints_its_pools_metrics(deploy: Deploy, url: str) -> None:
    environment = deploy(
        """
        pool = GuardedPool()

        @lambda_handler(prewarm=pool, metrics=True)
        async def handler(event, context):
            for _ in range(event["queries"]):
                await pool.fetchval("SELECT 1")
            return 1 / event["divisor"]
        """,
        LAMBDA_DATABASE_URL=url,
    )
    for queries, divisor in (1, 1), (1, 1), (0, 1), (1, 0):
        environment.invoke({"queries": queries, "divisor": divisor})
    first, second, idle, failed = environment.metrics
    assert first["ConnectTime"] > 0
    assert [line["ColdStart"] for line in environment.metrics] == [1, 0, 0, 0]
    assert [line["Failed"] for line in environment.metrics] == [0, 0, 0, 1]
    assert ["AcquireTime" in line for line in environment.metrics] == [True, True, False, True]
    assert not any("ConnectTime" in line for line in (second, idle, failed))
    assert first["function_name"]


def test_an_answer_that_nothing_can_encode_does_not_end_the_process(deploy: Deploy) -> None:
    environment = deploy("""
        @lambda_handler
        async def handler(event, context):
            return event
    """)
    for hostile in {"name": "\ud800"}, {"\udfff": 1}, [["a", {"b": "\udc00"}]]:
        answer = environment.invoke(hostile)
        assert answer.error is not None
        assert (answer.error["errorType"], answer.error["errorMessage"]) == ("TriggerFailedError", SAFE)
        assert environment.invoke({"name": "Zo\u00eb"}).payload == {"name": "Zo\u00eb"}
    assert "is not valid UTF-8" in environment.stdout


def test_a_wrong_handler_fails_the_deployment(deploy: Deploy) -> None:
    """The init error names the remedy."""
    with pytest.raises(Exception, match="Define it with `async def`"):
        deploy("""
            @lambda_handler
            def handler(event, context): ...
        """)


WITH_POOL = """
    pool = GuardedPool()

    @lambda_handler
    async def handler(event, context):
        async with pool.acquire() as conn:
            print("in the block")
            {block}
        return os.getpid()
"""
QUICK = WITH_POOL.format(block="await conn.execute('SELECT 1')")
SLOW = WITH_POOL.format(block="await conn.execute('SELECT pg_sleep(3600)')")
BLOCKING = WITH_POOL.format(block="time.sleep(3600)")
PONDERING = WITH_POOL.format(block="await asyncio.sleep(3600)")
FORMER = """
    def former(signum, frame):
        print("former handler", signum)
        {end}

    signal.signal(signal.SIGTERM, former)
"""


async def test_sigterm_ends_idle_sessions(
    deploy: Deploy, url_via_tcp_proxy: str, proxy: TcpProxy, role: str, observer: Observer, eventually: Eventually
) -> None:
    """Within 300 ms, with a goodbye to the server; then the former handler is called, and the process ends."""
    environment = deploy(
        FORMER.format(end="signal.raise_signal(signal.SIGTERM)") + QUICK, LAMBDA_DATABASE_URL=url_via_tcp_proxy
    )
    assert environment.invoke({}).payload == environment.pid
    assert await observer.count(user=role) == 1
    seconds = await terminate(environment, role, observer, eventually)
    assert seconds < 0.3
    assert environment.wait(10.0) == 0
    assert proxy.client_messages[-1:] == [b"X"]
    assert environment.stdout.count("former handler 15") == 1


@pytest.mark.parametrize(
    ("source", "profile", "goodbye"),
    [(SLOW, "false", []), (SLOW, "true", []), (PONDERING, "true", [b"X"]), (BLOCKING, "true", [])],
    ids=["in a statement", "in a statement without the server's check", "in a block", "loop blocked"],
)
@pytest.mark.slow
async def test_sigterm_ends_busy_sessions(
    source: str, profile: str, goodbye: list[bytes], deploy: Deploy, url_via_tcp_proxy: str, proxy: TcpProxy, role: str,
    observer: Observer, eventually: Eventually, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Within 1 s, whatever the handler does: a statement is cancelled, and an idle session gets a goodbye."""
    for name in os.environ.keys() - unmeasured():  # a blocked process would save its coverage before its sockets close
        monkeypatch.delenv(name)
    environment = deploy(
        FORMER.format(end="sys.exit(3)") + source,
        LAMBDA_DATABASE_URL=url_via_tcp_proxy,
        LAMBDA_DATABASE_PROXY_PROFILE=profile,
        LAMBDA_DATABASE_COMMAND_TIMEOUT_MS="60000",
        LAMBDA_DATABASE_CONNECT_TIMEOUT_MS="10000",
    )
    environment.submit({}).add_done_callback(lambda future: future.exception())
    await eventually(lambda: "in the block" in environment.stdout, within=20)
    await eventually(lambda: is_in(observer, role, "active" if source is SLOW else "idle"))
    seconds = await terminate(environment, role, observer, eventually)
    assert seconds < 1
    assert environment.wait(10.0) == 0
    assert set(goodbye) <= set(proxy.client_messages)
    assert environment.stdout.count("former handler 15") == 1
    assert "previous handler of SIGTERM failed" not in environment.stdout


def test_sigterm_in_the_last_moment_of_a_call(deploy: Deploy, url_via_tcp_proxy: str, proxy: TcpProxy) -> None:
    """The loop stops by itself, and the sessions are told goodbye all the same."""
    environment = deploy(
        """
        pool = GuardedPool()

        @lambda_handler
        async def handler(event, context):
            await pool.ping()
            signal.raise_signal(signal.SIGTERM)
        """,
        LAMBDA_DATABASE_URL=url_via_tcp_proxy,
    )
    environment.submit({}).add_done_callback(lambda future: future.exception())
    assert environment.wait(10.0) == 0
    assert proxy.client_messages[-1:] == [b"X"]


async def is_in(observer: Observer, role: str, state: str) -> bool:
    return [session["state"] for session in await observer.sessions(user=role)] == [state]


async def terminate(environment: Environment, role: str, observer: Observer, eventually: Eventually) -> float:
    """Send SIGTERM; the seconds until the server shows no session of this role."""
    await until_it_waits(environment.pid, eventually)
    began = time.monotonic()
    os.kill(environment.pid, signal.SIGTERM)
    await eventually(lambda: no_session(observer, role), within=3, every=0.002)
    seconds = time.monotonic() - began
    print(f"no session {seconds * 1000:.0f} ms after SIGTERM")  # noqa: T201
    return seconds


async def until_it_waits(pid: int, eventually: Eventually) -> None:
    """Return once the process's main thread waits in the kernel, as it does between two events.

    Python runs a signal's handler late, if at all, where the signal came just before such a wait: the interpreter does
    not look again until something else ends the wait. A busy machine may keep the main thread in that very place.
    """
    process = psutil.Process(pid)
    last: object = None

    def waits() -> bool:
        nonlocal last
        before, last = last, process.num_ctx_switches()
        return last == before and process.status() == psutil.STATUS_SLEEPING

    await eventually(waits, within=20)


async def no_session(observer: Observer, role: str) -> bool:
    return await observer.count(user=role) == 0


async def test_sigterm_without_a_pool_or_a_call(deploy: Deploy, eventually: Eventually) -> None:
    """An environment that was never used ends at once, even if the former handler fails or writes nowhere."""
    environment = deploy(
        FORMER.format(end="sys.stdout.stream.close(); raise ValueError('jane@example.com')")
        + """
    @lambda_handler
    async def handler(event, context): ...
        """
    )
    await until_it_waits(environment.pid, eventually)
    assert environment.terminate() < 2
    assert environment.returncode == 0
    assert "former handler 15" in environment.stdout
    assert "jane" not in environment.stdout + environment.stderr


@pytest.mark.slow
def test_sigterm_is_left_alone_outside_lambda() -> None:
    """A test's process keeps its own way to end; so does one in which another thread wraps a handler."""
    said = python("""
        import os, signal, threading
        from asyncdb_guard.runtime import lambda_handler

        async def handler(event, context): ...

        lambda_handler(handler)(1, 2)
        print(int(signal.getsignal(signal.SIGTERM)))
        os.environ["AWS_LAMBDA_RUNTIME_API"] = "127.0.0.1:9001"
        thread = threading.Thread(target=lambda_handler, args=(handler,))
        thread.start()
        thread.join()
        print(int(signal.getsignal(signal.SIGTERM)))
        lambda_handler(handler)
        print(callable(signal.getsignal(signal.SIGTERM)))
    """)
    assert said == "0\n0\nTrue\n"


@pytest.mark.slow
def test_a_forked_child_has_its_own_sigterm() -> None:
    """Before its first call it dies of SIGTERM as any process does; after it, it ends its sessions first."""
    said = python(
        """
        import os, signal
        os.environ["AWS_LAMBDA_RUNTIME_API"] = "127.0.0.1:9001"
        from asyncdb_guard.runtime import lambda_handler

        @lambda_handler
        async def handler(event, context): ...

        handler(1, 2)
        ends = []
        for used in False, True:
            child = os.fork()
            if child == 0:
                if used:
                    handler(1, 2)
                signal.raise_signal(signal.SIGTERM)
            ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        print(ends)
        """
    )
    assert said == "[-15, 0]\n"


@pytest.mark.slow
async def test_managed_instances_end_their_sessions(
    deploy: Deploy, url: str, role: str, observer: Observer, eventually: Eventually
) -> None:
    """awslambdaric forks a process for each concurrent request: each has a loop, a session and an end of its own."""
    meeting = """
            open(f"{os.getpid()}.pid", "w").close()
            while len([name for name in os.listdir() if name.endswith(".pid")]) < 2:
                await asyncio.sleep(0.01)
    """
    environment = deploy(
        WITH_POOL.format(block=meeting),
        LAMBDA_DATABASE_URL=url,
        LAMBDA_DATABASE_CONNECT_TIMEOUT_MS="10000",
        AWS_LAMBDA_MAX_CONCURRENCY="2",
    )
    calls = [environment.submit({}), environment.submit({})]
    # one of the two may still import the function: each does so after the fork
    workers = [call.result(START_TIMEOUT).payload for call in calls]
    assert len({environment.pid, *workers}) == 3
    assert await observer.count(user=role) == 2
    for worker in workers:
        await until_it_waits(worker, eventually)
        os.kill(worker, signal.SIGTERM)
    await eventually(lambda: no_session(observer, role))
    assert environment.wait(10.0) == 0


PREWARMED = """
    pool = GuardedPool()

    @lambda_handler(prewarm={prewarm})
    async def handler(event, context):
        return await pool.fetchval("SELECT pg_backend_pid()")
"""


async def test_prewarm_opens_the_session_during_init(deploy: Deploy, url: str, role: str, observer: Observer) -> None:
    """The server shows it before anybody has called, and the first call uses it."""
    environment = deploy(PREWARMED.format(prewarm="pool"), LAMBDA_DATABASE_URL=url)
    (session,) = await observer.sessions(user=role)
    assert environment.invoke({}).payload == session["pid"]


def test_a_failed_prewarm_is_only_logged(deploy: Deploy) -> None:
    """The environment comes up; each call then fails with its own error."""
    environment = deploy(PREWARMED.format(prewarm="[pool, GuardedPool()]"))
    answer = environment.invoke({})
    assert answer.error is not None
    assert answer.error["errorType"] == "ConfigurationError"
    assert environment.stdout.count("A pool could not be prewarmed: No database URL") == 2


def test_nothing_is_prewarmed_for_a_snapshot(deploy: Deploy) -> None:
    """Under SnapStart nobody tries, so nothing can fail."""
    environment = deploy(PREWARMED.format(prewarm="pool"), AWS_LAMBDA_INITIALIZATION_TYPE="snap-start")
    assert "prewarmed" not in environment.stdout


def test_nothing_is_prewarmed_outside_lambda(caplog: pytest.LogCaptureFixture) -> None:
    """A test that imports the function's module connects to nothing."""
    handler = lambda_handler(Greeter().greet, prewarm=GuardedPool())
    assert handler("Jane") == "Hello Jane"
    assert not caplog.records


async def test_sessions_end_before_a_snapshot(
    deploy: Deploy, url: str, role: str, observer: Observer, eventually: Eventually
) -> None:
    """What the module itself has opened is closed, and opened anew after the restore."""
    environment = deploy(
        PREWARMED.format(prewarm="pool") + "    first = handler({}, None)\n"
        "    print('opened by the module', first, flush=True)\n",
        LAMBDA_DATABASE_URL=url,
        AWS_LAMBDA_INITIALIZATION_TYPE="snap-start",
    )
    await eventually(lambda: no_session(observer, role))
    first = int(environment.stdout.split()[-1])
    assert environment.invoke({}).payload != first


def test_a_pool_that_cannot_be_ended_is_only_logged(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The snapshot is taken all the same, and the other pools' sessions are ended before it."""
    monkeypatch.setenv("LAMBDA_DATABASE_URL", url)
    pools = GuardedPool(), GuardedPool()

    @lambda_handler
    async def handler(event: object, context: object = None) -> None:
        for pool in pools:
            await pool.ping()

    handler({})
    disconnect = PoolCore.disconnect

    async def fail(core: PoolCore, timeout: float) -> None:
        await disconnect(core, timeout)
        if core is pools[0]._core:
            raise OSError(SECRET)

    monkeypatch.setattr(PoolCore, "disconnect", fail)
    for hook, arguments, options in snapshot_restore_py.get_before_snapshot():
        hook(*arguments, **options)
    assert [pool.stats()["idle"] for pool in pools] == [0, 0]
    assert caplog.messages[0].startswith("A pool's sessions could not be closed: OSError at ")
    assert SECRET not in caplog.text


@pytest.mark.slow
def test_without_snapshot_restore_py() -> None:
    """It is only sure to be there in Lambda's own Python runtimes."""
    said = python("""
        import sys
        sys.modules["snapshot_restore_py"] = None
        from asyncdb_guard.runtime import lambda_handler

        @lambda_handler
        async def handler(event, context): return event

        print(handler.__name__)
    """)
    assert said == "handler\n"


def python(source: str, *options: str) -> str:
    """What a process with every warning an error says; it must end well and complain of nothing."""
    done = subprocess.run(
        [sys.executable, "-Werror", *options, "-c", textwrap.dedent(source)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=START_TIMEOUT, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_what_a_handler_returns_that_is_no_json_is_left_to_the_runtime() -> None:
    kept = object()
    assert lambda_handler(echo.__wrapped__)(kept) is kept
    assert lambda_handler(echo.__wrapped__)({1, 2}) == {1, 2}
    keyed = {(1, 2): 3}
    assert lambda_handler(echo.__wrapped__)(keyed) is keyed


if sys.version_info >= (3, 12):

    @pytest.mark.parametrize("fails", [False, True])
    def test_what_is_only_marked_as_a_coroutine_function_shows_nothing(
        fails: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        @inspect.markcoroutinefunction
        def marked(event: object, context: object) -> object:
            if fails:
                raise ValueError(SECRET)
            return event

        with pytest.raises(TriggerFailedError, match=SAFE) as caught:
            lambda_handler(marked)(COGNITO | {"email": SECRET}, None)
        assert caught.value.__context__ is None
        assert SECRET not in caplog.text
