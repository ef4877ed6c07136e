"""What the tests stand on does what they believe."""

from __future__ import annotations

import os

import pytest

from tests.support.eventually import Eventually


async def test_eventually_tells_what_it_saw(eventually: Eventually) -> None:
    assert await eventually(lambda: 3) == 3
    with pytest.raises(AssertionError, match=r"Not within 0\.02 s: the moon is full\nLast seen: 0"):
        await eventually(lambda: 0, within=0.02, but="the moon is full")


def test_no_setting_comes_from_outside() -> None:
    assert not [name for name in os.environ if name.startswith(("LAMBDA_DATABASE_", "PG", "AWS_"))]
