"""After a fork the child opens its own session, and the parent keeps its own, however the child ends."""

from __future__ import annotations

import pytest

from tests.support.program import run

PRELUDE = """
    import asyncio, os, sys
    from asyncdb_guard import GuardedPool

    PID = "SELECT pg_backend_pid()"
    pool = GuardedPool()

    def wait_for(child):
        _, status = os.waitpid(child, 0)
        assert status == 0, status
"""


# a child that leaves uvloop's runner through its end waits for its parent's events for ever, pool or no pool
@pytest.mark.parametrize(
    ("loop", "ending"),
    [
        ("asyncio.new_event_loop", "os._exit(0)"),
        ("asyncio.new_event_loop", "sys.exit(0)"),
        ("uvloop.new_event_loop", "os._exit(0)"),
    ],
)
@pytest.mark.slow
def test_a_child_opens_its_own_session_and_spares_its_parents(url: str, ending: str, loop: str) -> None:
    program = f"""{PRELUDE}
    import uvloop
    with asyncio.Runner(loop_factory={loop}) as runner:
        mine = runner.run(pool.fetchval(PID))
        child = os.fork()
        if child == 0:
            assert asyncio.run(pool.fetchval(PID)) != mine
            {ending}
        wait_for(child)
        assert runner.run(pool.fetchval(PID)) == mine, "the parent lost its session"
        print("spared")
    """
    # uvloop runs timers before it reads, so that the bound on a reset passes while the parent waits for a slow child
    reset = {"LAMBDA_DATABASE_SESSION_RESET": "never"} if "uvloop" in loop else {}
    assert run(program, LAMBDA_DATABASE_URL=url, **reset) == "spared\n"


@pytest.mark.parametrize("ending", ["os._exit(0)", "sys.exit(0)"])
def test_a_child_that_never_touches_the_pool_spares_its_parents_session(url: str, ending: str) -> None:
    program = f"""{PRELUDE}
    with asyncio.Runner() as runner:
        mine = runner.run(pool.fetchval(PID))
        child = os.fork()
        if child == 0:
            {ending}
        wait_for(child)
        assert runner.run(pool.fetchval(PID)) == mine
        print("spared")
    """
    assert run(program, LAMBDA_DATABASE_URL=url) == "spared\n"


def test_a_borrowed_session_survives_a_fork_in_the_middle_of_its_block(url: str) -> None:
    program = f"""{PRELUDE}
    async def main():
        async with pool.acquire() as connection:
            mine = await connection.fetchval(PID)
            child = os.fork()
            if child == 0:
                os._exit(0)
            wait_for(child)
            assert await connection.fetchval(PID) == mine
        print("spared")

    asyncio.run(main())
    """
    assert run(program, LAMBDA_DATABASE_URL=url) == "spared\n"


def test_multiprocessing_with_the_fork_method_works_in_parent_and_children(url: str) -> None:
    program = f"""{PRELUDE}
    import multiprocessing, warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # multiprocessing's own, about forking with threads

    def work(queue):
        queue.put(asyncio.run(pool.fetchval(PID)))

    with asyncio.Runner() as runner:
        mine = runner.run(pool.fetchval(PID))
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        children = [context.Process(target=work, args=(queue,)) for _ in range(3)]
        for child in children:
            child.start()
        pids = {{queue.get() for _ in children}}
        for child in children:
            child.join()
            assert child.exitcode == 0
        assert len(pids | {{mine}}) == 4
        assert runner.run(pool.fetchval(PID)) == mine
        print("spared")
    """
    assert run(program, LAMBDA_DATABASE_URL=url) == "spared\n"


def test_a_child_may_close_the_pool_that_it_inherited(url: str) -> None:
    program = f"""{PRELUDE}
    with asyncio.Runner() as runner:
        mine = runner.run(pool.fetchval(PID))
        child = os.fork()
        if child == 0:
            asyncio.run(pool.close())
            os._exit(0)
        wait_for(child)
        assert runner.run(pool.fetchval(PID)) == mine
        print("spared")
    """
    assert run(program, LAMBDA_DATABASE_URL=url) == "spared\n"


def test_a_child_of_a_process_whose_loop_was_replaced_opens_its_own_session(url: str) -> None:
    """A stray exit has cost the parent its loop, and the pool its session."""
    program = f"""{PRELUDE}
    import logging
    from asyncdb_guard import TriggerFailedError
    from asyncdb_guard.runtime import lambda_handler

    logging.disable()

    @lambda_handler
    async def handler(event, context=None):
        if event == "exit":
            asyncio.get_running_loop().call_soon(sys.exit)
            await asyncio.Event().wait()
        return await pool.fetchval(PID)

    first = handler("use")
    try:
        handler("exit")
    except TriggerFailedError:
        pass
    child = os.fork()
    if child == 0:
        assert handler("use") != first
        os._exit(0)
    wait_for(child)
    assert handler("use") != first
    print("served")
    """
    assert run(program, LAMBDA_DATABASE_URL=url) == "served\n"
