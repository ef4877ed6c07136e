"""`DatabaseSettings`: builds the settings from keywords, the environment and the URL, checks them and freezes them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn, Self, final

from pydantic import SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource

from asyncdb_guard.errors import ConfigurationError
from asyncdb_guard.events import logger
from asyncdb_guard.lambda_environment import function_name
from asyncdb_guard.settings.fields import ENV_PREFIX, SECRETS, SettingsFields
from asyncdb_guard.settings.pooler_profile import PoolerProfile, choose_profile
from asyncdb_guard.settings.problems import (
    VARIABLE,
    conflicts,
    contradiction,
    invalid_value,
    label,
    reserved_keyword,
    url_mixed_with,
)
from asyncdb_guard.settings.server_settings import session_name
from asyncdb_guard.settings.target import ConnectTarget, connect_target
from asyncdb_guard.settings.url import DatabaseUrl, parse_database_url

if TYPE_CHECKING:
    from pydantic.functional_validators import ModelWrapValidatorHandler

_FROZEN = "DatabaseSettings are frozen once built: build new ones with the values that you want."


_SAYS_WHERE = ("proxy_host", "proxy_profile", "secret_arn", "iam_auth", "ssl_root_cert")
"""The settings that belong to one database: where it is, and who logs in."""

_other_prefix: ContextVar[str | None] = ContextVar("_other_prefix", default=None)
"""The prefix of `from_env`, while it builds."""

_PREFIX = "[A-Z][A-Z0-9_]*_"


def _from_environment() -> dict[str, Any]:
    """All variables with the prefix, unknown ones included, and DATABASE_URL if LAMBDA_DATABASE_URL is not set.

    Under a prefix of the caller's own, that prefix alone. pydantic-settings' own source would look for JSON in the type
    of each field, which takes as long as all the rest, and no setting is JSON.
    """
    other_prefix = _other_prefix.get()
    prefix = other_prefix or ENV_PREFIX
    # Upper case only, because two spellings of one variable could contradict each other. A blank one is not set.
    given = {name: value for name, value in os.environ.items() if name.isupper() and value.strip()}
    variables = {f"{prefix}{setting.upper()}": setting for setting in SettingsFields.model_fields}
    values: dict[str, Any] = {setting: given[name] for name, setting in variables.items() if name in given}
    unknown = [name for name in os.environ if name.upper().startswith(prefix) and name not in variables]
    # as the faults name them, before `from_env` puts its own prefix there
    values.update((VARIABLE + _as_default(name, other_prefix), None) for name in unknown)
    if other_prefix is None and "DATABASE_URL" in given:
        values.setdefault("url", given["DATABASE_URL"])
    # From here on a SecretStr, so that an error report that includes the variables of each frame shows no secret.
    return {name: SecretStr(value) if name in SECRETS and value else value for name, value in values.items()}


@final
class DatabaseSettings(SettingsFields):
    """All settings, from keyword arguments, else the environment, else the database URL, else their defaults.

    A setting's variable is its name in upper case with the prefix `LAMBDA_DATABASE_`; an empty or blank one counts as
    not set. The URL is LAMBDA_DATABASE_URL, else DATABASE_URL. The environment is read when an instance is built, never
    at import, and no `.env` file is read. For a second database, `from_env` reads another prefix. Nothing is ignored:
    everything that is unknown, out of range or contradictory is listed in one `ConfigurationError`. An instance is
    frozen, and lives as long as you keep it. Neither its repr nor a dump shows a secret, a host or a statement (a
    pickle contains them). Final: to add settings of your own, make it a field of your own model.
    """

    if TYPE_CHECKING:
        """Type checkers take the keywords from the fields."""
    else:

        def __init__(self, /, **values: Any) -> None:
            if faults := [reserved_keyword(keyword) for keyword in values if keyword.startswith("_")]:
                raise ConfigurationError(*faults)
            faults = list(_mixed(values))
            try:
                super().__init__(**values)
            except ConfigurationError as error:
                faults += error.faults
            if faults:
                raise ConfigurationError(*faults)

    @classmethod
    def from_env(cls, prefix: str) -> Self:
        """The settings of another database: from the variables with this prefix, and from nothing else.

        `from_env("REPLICA_DATABASE_")` reads REPLICA_DATABASE_URL, REPLICA_DATABASE_POOL_MAX and so on, as strictly as
        `DatabaseSettings()` reads its own, and never DATABASE_URL. Raises ConfigurationError.
        """
        if not re.fullmatch(_PREFIX, prefix):
            raise ConfigurationError(
                "The prefix of from_env() must be in upper case and end with an underscore, as in REPLICA_DATABASE_."
            )
        built = None
        faults: tuple[str, ...] = ()
        before = _other_prefix.set(prefix)
        try:
            built = cls()
        except ConfigurationError as error:
            faults = error.faults
        finally:
            _other_prefix.reset(before)
        if built is None:
            raise ConfigurationError(*(_under(prefix, fault) for fault in faults))
        return built

    def __init_subclass__(cls, **config: Any) -> NoReturn:
        # Only the fields of SettingsFields are checked: one more field, or another prefix, would be silently ignored.
        raise TypeError("DatabaseSettings cannot be subclassed: make it a field of your own model.")

    @cached_property
    def target(self) -> ConnectTarget:
        """Where to connect and how, with all settings applied."""
        name = session_name(function_name(), sys.argv[0] if sys.argv else "")
        return connect_target(self, _read_url(self.url)[0], self.profile, name)

    @property
    def profile(self) -> PoolerProfile:
        """What stands between a connection and PostgreSQL, and what that permits."""
        return choose_profile(proxy_host=self.proxy_host, proxy_profile=self.proxy_profile)

    @property
    def reset_sessions(self) -> bool:
        """Whether the reset query runs at each release."""
        return (self.session_reset or self.profile.session_reset) == "always"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Keyword arguments, then the environment. No files."""
        return init_settings, InitSettingsSource(settings_cls, init_kwargs=_from_environment())

    @model_validator(mode="wrap")
    @classmethod
    def _build_and_check(cls, values: dict[str, Any] | Self, build: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(values, dict):  # an instance, as a field of the user's own model
            return build(values)
        url, faults = _read_url(values.get("url"))
        set_twice = [setting for setting in url.settings if values.get(setting) is not None]
        from_url = {setting: value for setting, value in url.settings.items() if setting not in set_twice}
        values = {**values, **from_url}
        built, errors = None, []
        # Nothing is raised inside the `except`: pydantic's error, and with it each value, would become the context.
        try:
            built = build(values)
        except ValidationError as error:
            errors = error.errors(include_input=False)
        invalid = {str(error["loc"][0]) for error in errors}
        if "url" in invalid:
            faults = []
        if built is None:
            # Once more without the invalid values, to find the faults between the others as well.
            built = build({name: value for name, value in values.items() if name not in invalid})
        faults += [invalid_value(error, from_url=str(error["loc"][0]) in from_url) for error in errors]
        faults += [
            contradiction(setting)
            for setting in set_twice
            if setting not in invalid and getattr(built, setting) != url.settings[setting]
        ]
        faults += [
            sentence
            for involved, sentence in conflicts(built, url, built.target, built.profile, from_url)
            if not involved & invalid
        ]
        if faults:
            raise ConfigurationError(*faults)
        if built.reset_sessions and built.profile.session_reset == "never":
            logger.warning(
                "%s is always, but connections go through a %s: each release costs a round trip, and RDS Proxy pins the"
                " session.",
                label("session_reset"),
                built.profile.name,
            )
        return built

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy. Raises ConfigurationError for an `update`, because nothing would check it."""
        if update:
            raise ConfigurationError(_FROZEN)
        return super().model_copy(deep=deep)

    def copy(self, *, deep: bool = False, **changes: Any) -> Self:
        """`model_copy` under its old name. Raises ConfigurationError for `update`, `include` and `exclude`."""
        if any(change is not None for change in changes.values()):
            raise ConfigurationError(_FROZEN)
        return self.model_copy(deep=deep)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise ConfigurationError(_FROZEN)

    def __delattr__(self, name: str) -> NoReturn:
        raise ConfigurationError(_FROZEN)


def _mixed(values: Mapping[str, Any]) -> Iterator[str]:
    """One sentence for each variable that would send the URL of a keyword elsewhere, or log in as somebody else."""
    if values.get("url") is None:
        return
    for setting in _SAYS_WHERE:
        if setting not in values and os.environ.get(f"{ENV_PREFIX}{setting.upper()}", "").strip():
            yield url_mixed_with(setting)


def _as_default(name: str, prefix: str | None) -> str:
    """A variable as it would be named without `from_env`, to find the one that is nearest to it."""
    return name if prefix is None else ENV_PREFIX + name[len(prefix) :]


def _under(prefix: str, fault: str) -> str:
    """A fault as `from_env` tells it."""
    fault = fault.replace(", else DATABASE_URL", "").replace(" or DATABASE_URL ", " ")
    return fault.replace(ENV_PREFIX, prefix)


def _read_url(value: object) -> tuple[DatabaseUrl, list[str]]:
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    return parse_database_url(value) if isinstance(value, str) else (DatabaseUrl(), [])
