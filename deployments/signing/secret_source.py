"""Where a secret is. Only this is copied between processes; the secret is read where it is used."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class SecretSource:
    """The environment variable, or else the file, that holds a secret."""

    env: str | None = None
    file: Path | None = None

    def read(self, what: str, at_least: int = 1) -> str:
        """Reads the secret, without surrounding white space.

        Raises ValueError, which names `what` it is and where it should be, unless it has `at_least` characters.
        """
        place = f"the environment variable {self.env}" if self.file is None else f"the file {self.file}"
        try:
            found = os.environ.get(self.env or "", "") if self.file is None else self.file.read_text()
        except (OSError, UnicodeDecodeError):
            raise ValueError(f"{what}: {place} cannot be read as text") from None
        if len(found.strip()) < at_least:
            raise ValueError(f"{what}: {place} must hold at least {at_least} characters")
        return found.strip()
