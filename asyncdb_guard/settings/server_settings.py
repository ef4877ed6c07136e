"""Settings for each session, in libpq's form: `-c name=value` or `--name=value`; and the session's name. Pure."""

import re
from collections.abc import Mapping
from pathlib import PurePath

RESERVED = frozenset(
    {"client_connection_check_interval", "client_encoding", "database", "options", "replication", "user"}
)
"""What the pool or the driver sets itself."""

BOUNDS = {
    "statement_timeout": "command_timeout_ms",
    "idle_session_timeout": "idle_timeout_ms",
    "idle_in_transaction_session_timeout": "idle_timeout_ms",
}
"""What the pool sets, too, with the setting that it follows: a stricter value counts."""

_WORD = r"(?s)(?:\\.|[^\\\s])+"
_ESCAPED = r"(?s)\\(.)"
_TO_ESCAPE = r"[\\\s]"
_SETTING = r"(?s)([A-Za-z_][\w.-]*)=(.*)"

_UNITS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "min": 60_000.0, "h": 3_600_000.0, "d": 86_400_000.0, "": 1.0}
"""PostgreSQL's units of time, in milliseconds. A bare number of these settings is in milliseconds."""

_TIME = r"\s*(\d+(?:\.\d+)?)\s*(us|ms|s|min|h|d|)\s*"

_NAME_MAX = 63
"""Bytes of an application_name that PostgreSQL keeps."""


def parse_server_settings(text: str) -> dict[str, str] | None:
    """The settings in `text`, by name; None if it has another form, or two values for one name.

    As PostgreSQL reads it (src/backend/utils/init/postinit.c, pg_split_opts): a backslash takes what follows literally.
    """
    if not text:
        return {}
    words = [re.sub(_ESCAPED, r"\1", word) for word in re.findall(_WORD, text)]
    found: dict[str, str] = {}
    while words:
        word = words.pop(0)
        if word == "-c" and words:
            word = f"-c{words.pop(0)}"
        match = re.fullmatch(_SETTING, word[2:]) if word.startswith(("-c", "--")) else None
        if match is None:
            return None
        name = match[1].lower().replace("-", "_")
        if found.setdefault(name, match[2]) != match[2]:
            return None
    return found


def write_server_settings(settings: Mapping[str, str]) -> str:
    """One text for the same settings, in whatever order and form they were given."""
    values = {name: re.sub(_TO_ESCAPE, lambda found: f"\\{found[0]}", value) for name, value in settings.items()}
    return " ".join(f"-c {name.lower()}={value}" for name, value in sorted(values.items()))


def milliseconds(value: str) -> int:
    """A duration as PostgreSQL writes one, in milliseconds; 0 if it is none."""
    match = re.fullmatch(_TIME, value)
    return round(float(match[1]) * _UNITS[match[2]]) if match is not None else 0


def session_name(function: str | None, program: str) -> str:
    """The application_name of sessions that nobody has named: the Lambda function's name, else the program's."""
    path = PurePath(program)
    name = function or (path.parent.name if path.name == "__main__.py" else path.stem)
    # PostgreSQL replaces other characters, and cuts off what is longer
    printable = "".join(char if " " <= char <= "~" else "?" for char in name)
    return printable[:_NAME_MAX] if name.strip("-c ") else "python"
