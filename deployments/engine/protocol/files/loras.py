"""LoRAs as an engine gets them: files, and how strongly each acts. No torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A file of the registry, under the `name` that callers use.

    `source` is the path of a safetensors file, or a repository on the hub at the commit `revision`, in which it is
    `file`. `digest` is the SHA-256 of a local file in hexadecimal: a file that changes becomes another LoRA. It is ""
    on the hub, where the commit says as much.
    """

    name: str
    source: str
    revision: str | None = None
    file: str = ""
    digest: str = ""

    @property
    def identity(self) -> tuple[str, ...]:
        """What its weights are known by, whatever its name and place: the digest, or where it is on the hub."""
        return (self.digest,) if self.digest else (self.source, self.revision or "", self.file)


@dataclass(frozen=True, slots=True)
class LoraUse:
    """A LoRA in a request, which acts `scale` times as strongly as it was trained to."""

    file: LoraFile
    scale: float
