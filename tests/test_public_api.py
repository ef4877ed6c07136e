"""What users depend on changes only on purpose."""

from __future__ import annotations

from tests.support import public_api


def test_the_public_api_is_the_one_that_was_reviewed():
    """After a change that is meant: `python -m tests.support.public_api`, and a line in CHANGELOG.md."""
    assert public_api.page() == public_api.PAGE.read_text(encoding="utf-8")
