"""Tells from a LoRA file's header which base model it was trained for. No torch."""

from collections.abc import Iterator, Mapping
from typing import Final

from deployments.engine.checkpoints.safetensors_header import SafetensorsHeader
from deployments.engine.lora.tensor_names import FileNames

_ARCHITECTURES: Final = (
    ("stable-diffusion-v1", 768),
    ("stable-diffusion-v2", 1024),
    ("stable-diffusion-xl", 2048),
)
"""By what `modelspec.architecture` begins with: how wide the text is that the base's UNet reads."""

_BASES: Final = (
    ("sdxl", 2048),
    ("sd_xl", 2048),
    ("sd_v1", 768),
    ("sd_1", 768),
    ("sd1", 768),
    ("sd_v2", 1024),
    ("sd_2", 1024),
    ("sd2", 1024),
)
"""By what kohya's `ss_base_model_version` begins with: the same."""

_READS_TEXT: Final = ("attn2_to_k", "attn2_to_v")
_ENCODES_TEXT: Final = ("self_attn_q_proj", "self_attn_k_proj", "self_attn_v_proj", "self_attn_out_proj")


def text_width(header: SafetensorsHeader, names: FileNames) -> int | None:
    """Returns how wide the text is that the base's UNet reads (768 for Stable Diffusion 1.x, 1024 for 2.x); None if
    neither the file's metadata nor its shapes say so.

    Raises ValueError where they contradict each other.
    """
    said = {width for width in (*_from_metadata(header.metadata), *_from_shapes(header, names)) if width is not None}
    if len(said) > 1:
        raise ValueError(f"its header says that the text is {' and '.join(map(str, sorted(said)))} wide at once")
    return next(iter(said), None)


def _from_metadata(metadata: Mapping[str, str]) -> Iterator[int | None]:
    for key, known in (("modelspec.architecture", _ARCHITECTURES), ("ss_base_model_version", _BASES)):
        said = str(metadata.get(key, ""))
        yield next((width for start, width in known if said.lower().startswith(start)), None)


def _from_shapes(header: SafetensorsHeader, names: FileNames) -> Iterator[int | None]:
    layers = [("unet", layer) for layer in names.networks.get("unet", {}) if layer.endswith(_READS_TEXT)]
    # Where there are two text encoders, the UNet reads both's texts side by side.
    if not layers and "text_encoder_2" not in names.networks:
        encoder = names.networks.get("text_encoder", {})
        layers = [("text_encoder", layer) for layer in encoder if layer.endswith(_ENCODES_TEXT)]
    for network, layer in layers:
        parts = names.networks[network][layer]
        yield _inputs({part: header.tensors[key].shape for part, key in parts.items()})


def _inputs(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Returns how many inputs the layer has that these tensors change; None if that cannot be told."""
    sides = {part: shape[1] for part, shape in shapes.items() if len(shape) > 1}
    for part in ("down", "diff", "hada_w1_b"):
        if part in sides:
            return sides[part]
    first = sides.get("lokr_w1", sides.get("lokr_w1_b"))
    second = sides.get("lokr_w2", sides.get("lokr_w2_b"))
    return None if first is None or second is None else first * second
