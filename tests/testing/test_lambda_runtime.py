"""The stand-in for the Lambda Runtime API, with the real `awslambdaric`."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from pathlib import Path

import psutil
import pytest

from asyncdb_guard.testing import EnvironmentFailed, LambdaRuntime, RuntimeApi
from asyncdb_guard.testing.lambda_runtime import process
from asyncdb_guard.testing.lambda_runtime.endpoint import Endpoint
from asyncdb_guard.testing.lambda_runtime.process import PORTABLE
from tests.support.eventually import Eventually

HANDLER = """
import os, signal, time

def handler(event, context):
    print("said", context.function_name)
    match event:
        case {"fail": text}:
            raise ValueError(text)
        case {"exit": code}:
            os._exit(code)
        case {"fork": True}:
            child = os.fork()
            if child == 0:
                time.sleep(3600)
            return child
        case {"ignore": True}:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        case {"sleep": seconds}:
            time.sleep(seconds)
    return {"event": event, "left": context.get_remaining_time_in_millis(), "given": os.environ.get("GIVEN")}
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(HANDLER)
    (tmp_path / "broken.py").write_text("import nothing_of_that_name")
    return tmp_path


def test_an_environment_answers_one_event_after_the_other(runtime_api: RuntimeApi, code: Path) -> None:
    with runtime_api.environment("app.handler", cwd=code, env={"GIVEN": "yes"}) as environment:
        first = environment.invoke({"n": 1}, timeout_ms=5000)
        assert first.error is None
        assert first.payload["event"] == {"n": 1}
        assert first.payload["given"] == "yes"
        assert 3000 < first.payload["left"] <= 5000
        failed = environment.invoke({"fail": "so"})
        assert failed.payload is None
        assert failed.error is not None
        assert (failed.error["errorType"], failed.error["errorMessage"]) == ("ValueError", "so")
        large = "x" * 300_000
        assert environment.invoke({"large": large}).payload["event"]["large"] == large
        assert "said asyncdb-guard" in environment.stdout
    assert environment.returncode is not None


def test_awslambdaric_works_where_its_native_part_was_not_built(runtime_api: RuntimeApi, code: Path) -> None:
    (code / "which.py").write_text("import runtime_client\nfrom app import handler\nprint(runtime_client.__file__)")
    paths = os.pathsep.join((str(code), str(PORTABLE)))
    with runtime_api.environment("which.handler", cwd=code, env={"PYTHONPATH": paths}) as environment:
        assert environment.invoke({"n": 1}).payload["event"] == {"n": 1}
        failed = environment.invoke({"fail": "so"})
        assert failed.error is not None
        assert (failed.error["errorType"], failed.error["errorMessage"]) == ("ValueError", "so")
        assert str(PORTABLE) in environment.stdout
    assert environment.returncode == 1


def test_a_handler_that_cannot_be_imported_is_told(runtime_api: RuntimeApi, code: Path) -> None:
    environment = runtime_api.environment("broken.handler", cwd=code)
    with pytest.raises(EnvironmentFailed, match="nothing_of_that_name"):
        environment.invoke({})
    with pytest.raises(EnvironmentFailed, match="nothing_of_that_name"):
        environment.wait_ready()


def test_a_process_that_ends_is_told(runtime_api: RuntimeApi, code: Path) -> None:
    environment = runtime_api.environment("app.handler", cwd=code)
    with pytest.raises(EnvironmentFailed, match="exit code 3"):
        environment.invoke({"exit": 3})
    assert environment.returncode == 3


def test_a_frozen_process_answers_when_it_thaws(runtime_api: RuntimeApi, code: Path) -> None:
    environment = runtime_api.environment("app.handler", cwd=code)
    environment.wait_ready()
    environment.freeze()
    answer = environment.submit({"n": 1})
    with pytest.raises(TimeoutError):
        answer.result(0.1)
    environment.thaw()
    assert answer.result(5.0).payload["event"] == {"n": 1}


def test_a_process_can_be_asked_or_made_to_end(runtime_api: RuntimeApi, code: Path) -> None:
    asked, stubborn = (runtime_api.environment("app.handler", cwd=code) for _ in range(2))
    asked.wait_ready()
    assert asked.terminate() < 2.0
    assert asked.returncode == -signal.SIGTERM
    asked.kill()
    for signal_it in (asked.freeze, asked.thaw):
        with pytest.raises(EnvironmentFailed, match="has ended with exit code -15"):
            signal_it()
    asked.close()
    stubborn.invoke({"ignore": True})
    assert stubborn.terminate(grace=0.1) >= 0.1
    assert stubborn.returncode == -signal.SIGKILL


async def test_children_of_a_process_end_with_it(runtime_api: RuntimeApi, code: Path, eventually: Eventually) -> None:
    environment = runtime_api.environment("app.handler", cwd=code)
    child = environment.invoke({"fork": True}).payload
    assert is_running(child)
    environment.close()
    await eventually(lambda: not is_running(child))


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_fleet_is_closed_together(code: Path) -> None:
    with RuntimeApi.start() as api:
        fleet = [api.environment("app.handler", cwd=code) for _ in range(8)]
        answers = [environment.submit({"n": number}) for number, environment in enumerate(fleet)]
        assert [answer.result(20.0).payload["event"]["n"] for answer in answers] == list(range(8))
        busy = fleet[0].submit({"sleep": 60})
        pids = [environment.pid for environment in fleet]
    assert isinstance(busy.exception(), EnvironmentFailed)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


METRIC = '{"_aws":{"Timestamp":1,"CloudWatchMetrics":[]},"CacheMiss":1}'


def test_one_environment_needs_nothing_else_and_its_metrics_are_no_logs(code: Path) -> None:
    (code / "speaks.py").write_text(f"""
import sys
def handler(event, context):
    print("a line")
    print({METRIC!r})
    print('{{"no": "metric"}}', file=sys.stderr)
""")
    with LambdaRuntime.start("speaks.handler", cwd=code) as runtime:
        assert runtime.invoke({}).error is None
        assert runtime.metrics == [{"_aws": {"Timestamp": 1, "CloudWatchMetrics": []}, "CacheMiss": 1}]
        assert runtime.logs == ["a line", '{"no": "metric"}']
    assert runtime.returncode is not None
    assert runtime.metrics[0]["CacheMiss"] == 1
    runtime.close()


def test_a_runtime_that_cannot_start_leaves_no_thread(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.active_count()
    with pytest.raises(FileNotFoundError):
        LambdaRuntime.start("speaks.handler", cwd=code, python="/no/such/python")
    assert threading.active_count() == before
    monkeypatch.setattr(process, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"pip install 'asyncdb-guard\[testing\]'"):
        LambdaRuntime.start("speaks.handler", cwd=code)


def test_a_fleet_can_be_closed_twice_and_one_that_cannot_start_is_none_of_it(code: Path) -> None:
    api = RuntimeApi.start()
    with pytest.raises(FileNotFoundError):
        api.environment("app.handler", cwd=code, python="/no/such/python")
    waiting = api.environment("app.handler", cwd=code).submit({"sleep": 60})
    api.close()
    assert isinstance(waiting.exception(), EnvironmentFailed)
    api.close()


def test_what_else_a_process_may_ask_the_runtime_api(code: Path) -> None:
    (code / "asks.py").write_text("""
import http.client, os
def handler(event, context):
    def ask(method, path, **options):
        connection = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
        connection.request(method, "/2018-06-01/" + path, **options)
        status = connection.getresponse().status
        connection.close()
        return status
    chunked = {"body": iter([b"{", b"}"]), "headers": {"Transfer-Encoding": "chunked"}, "encode_chunked": True}
    if event == "nan":
        return float("nan")
    return [
        ask("GET", "nothing"), ask("GET", "runtime/restore/next"),
        ask("POST", "runtime/invocation/unknown/response", **chunked),
    ]
""")
    with LambdaRuntime.start("asks.handler", cwd=code) as runtime:
        assert runtime.invoke({}).payload == [404, 200, 202]
        with pytest.raises(ValueError, match="NaN is not JSON"):
            runtime.invoke("nan")


async def test_an_answer_that_came_before_the_end_stays_one() -> None:
    endpoint = Endpoint(lambda: "what it said")
    answered = asyncio.get_running_loop().create_future()
    answered.set_result((True, b"{}"))
    endpoint._pending["an id"] = answered
    endpoint.fail("The process has ended.")
    assert answered.result() == (True, b"{}")
    with pytest.raises(EnvironmentFailed, match="what it said"):
        await endpoint.invoke({}, 100)
