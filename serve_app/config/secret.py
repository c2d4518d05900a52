"""References to secrets. They are never in the configuration, which is copied into manifests, dashboards and logs."""

import os
from pathlib import Path

from pydantic import model_validator
from pydantic_core import PydanticCustomError

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
        place = f"the environment variable {self.env}" if self.file is None else f"the file {self.file}"
        try:
            found = os.environ.get(self.env or "", "") if self.file is None else self.file.read_text()
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"{what}: {place} cannot be read as text") from None
        if len(found.strip()) < at_least:
            raise ConfigError(f"{what}: {place} must hold at least {at_least} characters")
        return found.strip()
