"""Checks a checkpoint's model_index.json: the kind of pipeline, and the classes of its parts. No torch."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from deployments.engine.checkpoints.file_integrity import read_config
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.spec import INDEX

PIPELINES: Final = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionInpaintPipelineLegacy",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionControlNetImg2ImgPipeline",
    "StableDiffusionControlNetInpaintPipeline",
    "StableDiffusionPipelineSafe",
    "LatentConsistencyModelPipeline",
    "LatentConsistencyModelImg2ImgPipeline",
)
"""Those whose UNet, VAE, text encoder and tokenizer `StableDiffusionPipeline` can use."""

CLASSES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "unet": ("diffusers.UNet2DConditionModel",),
        "vae": ("diffusers.AutoencoderKL",),
        "text_encoder": ("transformers.CLIPTextModel",),
        "tokenizer": ("transformers.CLIPTokenizer", "transformers.CLIPTokenizerFast"),
    }
)
"""The classes that each part may have. The scheduler is read separately; entries besides these do not affect images."""


def check_pipeline(title: str, root: Path, parts: Iterable[str]) -> None:
    """Raises ModelLoadError if `root` is another kind of pipeline, or one of its own `parts` another kind of part.

    A folder without the file is taken to consist of its parts.
    """
    if not (root / INDEX).exists():
        return
    index = read_config(title, root / INDEX)
    kind = index.get("_class_name", PIPELINES[0])
    if kind not in PIPELINES:
        raise ModelLoadError(
            f"{title} is a {kind} by its {INDEX}, and served are Stable Diffusion 1 and 2 of these kinds: "
            f"{', '.join(PIPELINES)}; bring such a checkpoint"
        )
    for part in (part for part in parts if part in CLASSES):
        entry, served = index.get(part), CLASSES[part]
        if not isinstance(entry, list) or len(entry) != 2 or entry[1] is None:
            raise ModelLoadError(f"{title}: {INDEX} names no class for its {part}; bring one, or give it in `parts`")
        named = f"{entry[0]}.{entry[1]}"
        if named not in served:
            raise ModelLoadError(
                f"{title}: its {part} is a {named} by its {INDEX}, and served is a {served[0]}; bring one of those, or "
                "give it in `parts`"
            )
