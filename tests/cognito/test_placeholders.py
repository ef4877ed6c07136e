"""Finding `$1` in SQL as PostgreSQL itself does."""

from __future__ import annotations

import pytest

from asyncdb_guard.cognito.placeholders import StatementError, scan


@pytest.mark.parametrize(
    ("sql", "numbers"),
    [
        ("SELECT 1", []),
        ("SELECT $1, $2 , $1::text,$3::jsonb", [1, 2, 1, 3]),
        ("SELECT $12", [12]),
        ("SELECT '$1', '''$2', $3", [3]),
        (r"SELECT E'\'$1', e'\\', $2", [2]),
        (r"SELECT '\', $1", [1]),
        ("SELECT U&'$1', N'$2', B'1', $3", [3]),
        ('SELECT "a$1", """$2", $3', [3]),
        ("SELECT a$1, b$2c, $3", [3]),
        ("SELECT ü$1, $2", [2]),
        ("SELECT $$ $1 '$$, $2", [2]),
        ("SELECT $a$ $1 $$ $b$ $a$, $2", [2]),
        ("SELECT $ä$ $1 $ä$, $2", [2]),
        ("SELECT $1 -- $2\n, $3", [1, 3]),
        ("SELECT $1 -- $2", [1]),
        ("SELECT /* $1 /* $2 */ $3 */ $4", [4]),
        ("SELECT a /*'*/ , $1 /*'*/", [1]),
        ("SELECT namee'$1', $2", [2]),
        ("SELECT 5-$1/*x*/*$2", [1, 2]),
        ("SELECT $1;", [1]),
        ("SELECT $1 ; ; -- done\n /* done */ ", [1]),
    ],
)
def test_parameters_are_found_where_they_are(sql: str, numbers: list[int]) -> None:
    scanned = scan(sql)
    assert [parameter.number for parameter in scanned.parameters] == numbers
    for parameter in scanned.parameters:
        assert scanned.text[parameter.start : parameter.end] == f"${parameter.number}"


def test_the_semicolon_is_removed() -> None:
    assert scan("SELECT ';' ; ").text == "SELECT ';' "


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("", "is empty"),
        (" ;; ", "is empty"),
        ("-- SELECT 1", "is empty"),
        ("/* SELECT 1 */", "is empty"),
        ("SELECT 1; SELECT 2", "more than one"),
        ("SELECT 1;$$x$$", "more than one"),
        ("SELECT 'a", "quote"),
        ('SELECT "a', "quote"),
        ("SELECT /* /* */", "comment"),
    ],
)
def test_anything_but_a_single_statement_is_refused(sql: str, reason: str) -> None:
    with pytest.raises(StatementError, match=reason):
        scan(sql)
