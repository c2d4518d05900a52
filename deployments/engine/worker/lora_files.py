"""Reads the LoRAs that an engine is asked for, from disk or from the hub."""

from pathlib import Path

from deployments.engine.lora.adapter import Adapter
from deployments.engine.lora.reader import read_adapter
from deployments.engine.models.hub import locate_file
from deployments.engine.protocol.files.loras import LoraFile


def read_lora(file: LoraFile) -> Adapter:
    """Reads and checks a LoRA, which is fetched first if it is on the hub and not in its cache.

    Raises ModelLoadError if it cannot be fetched, and InvalidParameter, which says why, if it cannot be used.
    """
    if not file.file:
        return read_adapter(file, Path(file.source))
    return read_adapter(file, locate_file(f"LoRA {file.name!r}", file.source, file.revision, file.file))
