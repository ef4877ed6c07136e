"""Each block of code on the pages is run by a test, or says why not."""

from __future__ import annotations

from tests.docs import test_commands, test_python, test_services_page, test_sql, test_suites, test_variables
from tests.support.pages import BLOCKS, taken

TAKERS = (test_commands, test_python, test_services_page, test_sql, test_suites, test_variables)
"""They take their blocks when they are imported."""

NOT_RUN = {
    "deploys to AWS": 1,
    "downloads from AWS": 1,
    "needs Docker": 1,
    "the session lambda_package builds packages": 1,
}
"""The reasons on the pages, and how many blocks have each."""


def test_each_block_is_run_or_says_why_not() -> None:
    assert [str(block) for block in BLOCKS if block not in taken and not block.not_run] == []


def test_few_blocks_are_not_run() -> None:
    reasons = [block.not_run for block in BLOCKS if block.not_run]
    assert {reason: reasons.count(reason) for reason in reasons} == NOT_RUN


def test_no_block_is_taken_that_is_not_there() -> None:
    assert taken <= set(BLOCKS)
    assert TAKERS
