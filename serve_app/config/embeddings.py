"""The `embeddings` section: learnt embeddings (textual inversions) that prompts may name (docs/embeddings.md)."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints

from deployments.embeddings import NAME, TOKEN, EmbeddingRegistry, EmbeddingSpec
from serve_app.config.strict import Strict


class EmbeddingConfig(Strict):
    """A safetensors file, and the `token` that stands for it in prompts; without one, its name does."""

    name: Annotated[str, StringConstraints(pattern=f"^{NAME.pattern}$")]
    source: Path
    token: str = Field(default="", pattern=f"^({TOKEN.pattern})?$")

    def spec(self) -> EmbeddingSpec:
        """The specification that the registry takes."""
        return EmbeddingSpec(self.name, str(self.source), self.token)


class EmbeddingsConfig(Strict):
    """`files` by name, and a `folder` whose safetensors files have their own names. New ones there need no restart.

    The ingress and the replicas need the same files at the same places.
    """

    files: tuple[EmbeddingConfig, ...] = Field(default=(), max_length=1_000)
    folder: Path | None = None

    def registry(self) -> EmbeddingRegistry:
        """Reads the files. Raises ModelLoadError."""
        return EmbeddingRegistry([file.spec() for file in self.files], self.folder)

    @property
    def places(self) -> tuple[Path, ...]:
        """All paths that are read."""
        return (*(file.source for file in self.files), *(() if self.folder is None else (self.folder,)))
