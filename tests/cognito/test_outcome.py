"""An outcome that several callers share."""

from __future__ import annotations

import traceback

import pytest

from asyncdb_guard.cognito.outcome import capture


async def fail() -> None:
    raise LookupError("nothing there")


async def succeed() -> list[int]:
    return [1]


async def test_a_value_is_returned_to_everybody() -> None:
    outcome = await capture(succeed())
    assert outcome.error is None
    assert outcome.get() is outcome.get()


async def test_a_shared_error_does_not_collect_the_frames_of_its_callers() -> None:
    outcome = await capture(fail())
    depths = set()
    for _ in range(3):
        with pytest.raises(LookupError) as caught:
            outcome.get()
        depths.add(len(traceback.extract_tb(caught.value.__traceback__)))
    assert len(depths) == 1


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
async def test_even_the_end_of_the_process_is_captured(error: type[BaseException]) -> None:
    async def end() -> None:
        raise error

    outcome = await capture(end())
    assert isinstance(outcome.error, error)
    with pytest.raises(error):
        outcome.get()
