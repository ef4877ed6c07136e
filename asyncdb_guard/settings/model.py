"""`DatabaseSettings`: the knobs from the environment and the URL, checked as a whole and sealed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn, Self, final

from pydantic import ModelWrapValidatorHandler, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource

from asyncdb_guard.errors import ConfigurationError
from asyncdb_guard.events import logger
from asyncdb_guard.settings.fields import ENV_PREFIX, SettingsFields
from asyncdb_guard.settings.problems import VARIABLE, conflicts, contradiction, hidden, label, unfit
from asyncdb_guard.settings.target import ConnectTarget, connect_target
from asyncdb_guard.settings.url import DatabaseUrl, parse_database_url

_SECRETS = ("url", "claims_cache_url")
_SEALED = "DatabaseSettings are sealed once made: make new ones with the value that you want."


class _Environment(EnvSettingsSource):
    """The variables behind the prefix, the unknown ones too, and DATABASE_URL where LAMBDA_DATABASE_URL is not set."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls)
        # In capitals only, as two spellings of one variable would be at odds; and blank is empty.
        self.env_vars = {name.lower(): value for name, value in os.environ.items() if name.isupper() and value.strip()}

    def __call__(self) -> dict[str, Any]:
        values = super().__call__()
        known = {f"{ENV_PREFIX}{knob.upper()}" for knob in SettingsFields.model_fields}
        unknown = [name for name in os.environ if name.upper().startswith(ENV_PREFIX) and name not in known]
        values.update((VARIABLE + name, None) for name in unknown)
        values.setdefault("url", self.env_vars.get("database_url"))
        # Covered from here on, so that a report which shows the variables of each frame shows none of these.
        return {name: SecretStr(value) if name in _SECRETS and value else value for name, value in values.items()}


@final
class DatabaseSettings(SettingsFields):
    """All settings, from keyword arguments, else from the environment, else from the database URL, else their defaults.

    A variable is the knob's name behind `LAMBDA_DATABASE_`, all in capitals; an empty or blank one counts as not set.
    The URL is LAMBDA_DATABASE_URL, else DATABASE_URL. The environment is read when an instance is made, never at
    import, and no `.env` file is read. Nothing is ignored: what is unknown, out of range or contradictory raises one
    `ConfigurationError` with all the faults. Sealed once made; lives as long as you keep it. No repr and no dump of it
    shows a secret, a host or a statement (a pickle has to carry them). Final: settings of your own are a model that
    holds it as a field.
    """

    if TYPE_CHECKING:
        """Type checkers know the keywords from the knobs."""
    else:

        def __init__(self, /, **values: Any) -> None:
            if faults := [hidden(keyword) for keyword in values if keyword.startswith("_")]:
                raise ConfigurationError(*faults)
            super().__init__(**values)

    def __init_subclass__(cls, **config: Any) -> NoReturn:
        # Its faults are told for these knobs alone: a knob more, or another prefix, would be passed over in silence.
        raise TypeError("DatabaseSettings can't be subclassed: hold it as a field of a model of your own.")

    @cached_property
    def target(self) -> ConnectTarget:
        """Where to connect and how, everything above applied."""
        return connect_target(self, _read_url(self.url)[0], self.proxied)

    @property
    def proxied(self) -> bool:
        """Whether the proxy profile is on."""
        return self.proxy_host is not None if self.proxy_profile is None else self.proxy_profile

    @property
    def reset_sessions(self) -> bool:
        """Whether the reset query runs at each release."""
        return not self.proxied if self.session_reset is None else self.session_reset == "always"

    @property
    def connect_timeout(self) -> float:
        """`connect_timeout_ms` in seconds."""
        return self.connect_timeout_ms / 1000

    @property
    def idle_timeout(self) -> float:
        """`idle_timeout_ms` in seconds."""
        return self.idle_timeout_ms / 1000

    @property
    def max_lifetime(self) -> float:
        """`max_lifetime_ms` in seconds; 0 is never."""
        return self.max_lifetime_ms / 1000

    @property
    def command_timeout(self) -> float:
        """`command_timeout_ms` in seconds."""
        return self.command_timeout_ms / 1000

    @property
    def handler_budget(self) -> float:
        """`handler_budget_ms` in seconds."""
        return self.handler_budget_ms / 1000

    @property
    def breaker_reset_timeout(self) -> float:
        """`breaker_reset_timeout_ms` in seconds."""
        return self.breaker_reset_timeout_ms / 1000

    @property
    def breaker_reset_timeout_max(self) -> float:
        """`breaker_reset_timeout_max_ms` in seconds."""
        return self.breaker_reset_timeout_max_ms / 1000

    @property
    def claims_cache_ttl(self) -> float:
        """`claims_cache_ttl_ms` in seconds; 0 is off."""
        return self.claims_cache_ttl_ms / 1000

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Keyword arguments, then the environment. No file."""
        return init_settings, _Environment(settings_cls)

    @model_validator(mode="wrap")
    @classmethod
    def _settle(cls, values: dict[str, Any] | Self, build: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(values, dict):  # settings that are made already, as a field of a user's own model
            return build(values)
        url, faults = _read_url(values.get("url"))
        said_twice = [knob for knob in url.knobs if values.get(knob) is not None]
        from_url = {knob: value for knob, value in url.knobs.items() if knob not in said_twice}
        values = {**values, **from_url}
        settings, errors = None, []
        # Nothing is raised inside the `except`, where pydantic's error, and so each value, would become the context.
        try:
            settings = build(values)
        except ValidationError as error:
            errors = error.errors(include_url=False, include_context=False, include_input=False)
        wrong = {str(error["loc"][0]) for error in errors}
        if "url" in wrong:
            faults = []
        if settings is None:
            # Once more without the wrong ones, so that the faults between the others are told as well.
            settings = build({knob: value for knob, value in values.items() if knob not in wrong})
        faults += [unfit(error, str(error["loc"][0]) in from_url) for error in errors]
        faults += [
            contradiction(knob)
            for knob in said_twice
            if knob not in wrong and getattr(settings, knob) != url.knobs[knob]
        ]
        faults += [
            fault
            for knobs, fault in conflicts(settings, url, settings.target, settings.proxied, from_url)
            if not knobs & wrong
        ]
        if faults:
            raise ConfigurationError(*faults)
        if settings.proxied and settings.reset_sessions:
            logger.warning(
                "%s is always under the proxy profile: each release costs a round trip, and pins RDS Proxy's session.",
                label("session_reset"),
            )
        return settings

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy. Raises ConfigurationError for an `update`, as nothing would check it."""
        if update:
            raise ConfigurationError(_SEALED)
        return super().model_copy(deep=deep)

    def copy(self, *, deep: bool = False, **changes: Any) -> Self:
        """`model_copy` by its old name. Raises ConfigurationError for `update`, `include` and `exclude`."""
        if any(change is not None for change in changes.values()):
            raise ConfigurationError(_SEALED)
        return self.model_copy(deep=deep)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise ConfigurationError(_SEALED)

    def __delattr__(self, name: str) -> NoReturn:
        raise ConfigurationError(_SEALED)


def _read_url(value: object) -> tuple[DatabaseUrl, list[str]]:
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    return parse_database_url(value) if isinstance(value, str) else (DatabaseUrl(), [])
