"""Reads the LoRAs that an engine is asked for, from disk or from the hub."""

from pathlib import Path

from deployments.engine.lora.adapter import Adapter
from deployments.engine.lora.reader import describe_embeddings, read_adapter
from deployments.engine.models.hub import locate_file
from deployments.engine.protocol.files.embeddings import EmbeddingFile
from deployments.engine.protocol.files.loras import LoraFile


def read_lora(file: LoraFile) -> Adapter:
    """Reads and checks a LoRA, which is fetched first if it is on the hub and not in its cache.

    Raises ModelLoadError if it cannot be fetched, and InvalidParameter, which says why, if it cannot be used.
    """
    return read_adapter(file, _locate(file))


def describe_bundled(file: LoraFile) -> tuple[EmbeddingFile, ...]:
    """Returns what embeddings a LoRA brings along, from its file's header; raises what `read_lora` does."""
    return describe_embeddings(file, _locate(file))


def _locate(file: LoraFile) -> Path:
    if not file.file:
        return Path(file.source)
    return locate_file(f"LoRA {file.name!r}", file.source, file.revision, file.file)
