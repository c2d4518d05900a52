"""Loads the IP-Adapters of a model, each with its image encoder, when requests ask for them."""

from pathlib import Path
from typing import Final

from deployments.engine.ip_adapter.adapter import IpAdapter
from deployments.engine.ip_adapter.adapters import IpAdapters
from deployments.engine.ip_adapter.reader import LayerShapes, check_header
from deployments.engine.models.components import Components, PartFolder
from deployments.engine.models.hub import locate, locate_file
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.spec import ModelSpec

_FILES: Final = "give a safetensors file and the folder of its image encoder, or repositories of both"


def offer_ip_adapters(spec: ModelSpec, parts: Components, layers: LayerShapes) -> IpAdapters:
    """Returns the IP-Adapters of `spec`, for a UNet of these `layers`; none of them is loaded yet.

    Files that are on this machine are looked at. Raises ModelLoadError for one that cannot be served.
    """
    for name, adapter in spec.ip_adapters.items():
        if Path(adapter.source).is_file():
            check_header(_title(spec, name), Path(adapter.source), layers)
    return IpAdapters(tuple(spec.ip_adapters), lambda name: _load(spec, name, parts, layers))


def fetch_ip_adapters(spec: ModelSpec, *, half: bool) -> None:
    """Fetches all files of a model's IP-Adapters. Raises ModelLoadError."""
    for name in spec.ip_adapters:
        _locate(spec, name, half=half)


def _load(spec: ModelSpec, name: str, parts: Components, layers: LayerShapes) -> IpAdapter:
    title, asked = _title(spec, name), spec.ip_adapters[name]
    path, folder = _locate(spec, name, half=parts.is_half)
    try:
        encoder = PartFolder(f"{title}, its image encoder", asked.image_encoder, folder)
        return parts.ip_adapter(title, path, layers, encoder)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ModelLoadError(f"{title} could not be loaded from {asked.source!r}: {_FILES}") from error


def _locate(spec: ModelSpec, name: str, *, half: bool) -> tuple[Path, Path]:
    """Returns where the adapter's file and its image encoder's folder are, and fetches what is not here."""
    title, asked = _title(spec, name), spec.ip_adapters[name]
    path = locate_file(title, asked.source, asked.revision, asked.file)
    of_encoder = f"{title}, its image encoder"
    root = locate(of_encoder, asked.image_encoder, asked.image_encoder_revision, (asked.subfolder,), half=half)
    folder = root / asked.subfolder
    if not folder.is_dir():
        raise ModelLoadError(f"{of_encoder}: {asked.image_encoder!r} has no folder {asked.subfolder!r}")
    return path, folder


def _title(spec: ModelSpec, name: str) -> str:
    return f"model {spec.name!r}: its IP-Adapter {name!r}"
