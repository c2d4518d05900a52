"""Checks a checkpoint's model_index.json: the kind of pipeline, and the classes of its parts. No torch."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from deployments.engine.checkpoints.file_integrity import read_config
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.spec import INDEX, SECOND_PARTS

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

XL_PIPELINES: Final = (
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
    "StableDiffusionXLControlNetPipeline",
    "StableDiffusionXLControlNetImg2ImgPipeline",
    "StableDiffusionXLControlNetInpaintPipeline",
)
"""Those whose parts `StableDiffusionXLPipeline` can use: with two text encoders."""

CLASSES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "unet": ("diffusers.UNet2DConditionModel",),
        "vae": ("diffusers.AutoencoderKL",),
        "text_encoder": ("transformers.CLIPTextModel",),
        "tokenizer": ("transformers.CLIPTokenizer", "transformers.CLIPTokenizerFast"),
        "text_encoder_2": ("transformers.CLIPTextModelWithProjection",),
        "tokenizer_2": ("transformers.CLIPTokenizer", "transformers.CLIPTokenizerFast"),
    }
)
"""The classes that each part may have. The scheduler is read separately; entries besides these do not affect images."""


_REFINES: Final = "requires_aesthetics_score"
_ZEROS: Final = "force_zeros_for_empty_prompt"


def check_pipeline(title: str, root: Path, parts: Iterable[str]) -> None:
    """Raises ModelLoadError if `root` is another kind of pipeline, or one of its own `parts` another kind of part.

    A folder without the file is taken to consist of its parts.
    """
    if not (root / INDEX).exists():
        return
    index = read_config(title, root / INDEX)
    kind = index.get("_class_name", PIPELINES[0])
    if kind not in (*PIPELINES, *XL_PIPELINES):
        raise ModelLoadError(
            f"{title} is a {kind} by its {INDEX}, and served are Stable Diffusion 1, 2 and XL of these kinds: "
            f"{', '.join((*PIPELINES, *XL_PIPELINES))}; bring such a checkpoint"
        )
    if index.get(_REFINES):
        raise ModelLoadError(
            f"{title}: `{_REFINES}` is set in its {INDEX}, so it is a refiner of other models' pictures, which is "
            "not served; bring the base model"
        )
    is_read = [part for part in parts if part in CLASSES and (kind in XL_PIPELINES or part not in SECOND_PARTS)]
    for part in is_read:
        entry, served = index.get(part), CLASSES[part]
        if not isinstance(entry, list) or len(entry) != 2 or entry[1] is None:
            raise ModelLoadError(
                f"{title}: {INDEX} names a {kind} and no class for its {part}; bring one, or give it in `parts`"
            )
        named = f"{entry[0]}.{entry[1]}"
        if named not in served:
            raise ModelLoadError(
                f"{title}: its {part} is a {named} by its {INDEX}, and served is a {served[0]}; bring one of those, or "
                "give it in `parts`"
            )


def names_part(title: str, root: Path, part: str) -> bool:
    """Returns True if the model_index.json in `root`, if there is one, names a class for `part`."""
    entry = read_config(title, root / INDEX).get(part) if (root / INDEX).exists() else None
    return isinstance(entry, list) and entry[-1] is not None


def has_zeros_for_no_prompt(title: str, index: Path | None) -> bool:
    """Returns True if no negative prompt means zeros to a model with two text encoders, and not the empty text's
    embedding. So it does by diffusers' default, unless the model_index.json `index` says otherwise.
    """
    if index is None or not index.is_file():
        return True
    return bool(read_config(title, index).get(_ZEROS, True))
