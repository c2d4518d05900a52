"""References to secrets. They are never in the configuration, which is copied into manifests, dashboards and logs."""

from pathlib import Path

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from deployments.signing.secret_source import SecretSource
from serve_app.config.errors import ConfigError
from serve_app.config.strict import Strict


class Secret(Strict):
    """A secret in an environment variable or a file, read where it is used: by an ingress or a replica."""

    env: str | None = None
    file: Path | None = None

    @model_validator(mode="after")
    def _is_in_one_place(self) -> "Secret":
        if (self.env is None) == (self.file is None):
            raise PydanticCustomError("secret", "name either `env`, an environment variable, or `file`")
        return self

    def read(self, what: str, at_least: int = 1) -> str:
        """Reads the secret, without surrounding white space.

        Raises ConfigError, which names `what` it is and where it should be, unless it has `at_least` characters.
        """
        try:
            return self.source.read(what, at_least)
        except ValueError as error:
            raise ConfigError(str(error)) from None

    @property
    def source(self) -> SecretSource:
        """The same for other processes."""
        return SecretSource(self.env, self.file)
