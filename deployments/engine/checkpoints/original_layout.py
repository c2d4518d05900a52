"""Identifies the model of a single file in the original (CompVis) layout, and the configs that describe it. No torch.

Other models that come as one file are refused, and named. If the keys leave something open, nothing is guessed: the
configuration must state it.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from deployments.engine.checkpoints.original_configs import Family, PredictionType, with_zero_snr
from deployments.engine.checkpoints.safetensors_header import SafetensorsHeader, read_header
from deployments.engine.protocol.errors import ModelLoadError

UNET: Final = "model.diffusion_model."
VAE_PREFIXES: Final = ("first_stage_model.", "vae.")
CLIP: Final = "cond_stage_model.transformer.text_model."
OPEN_CLIP: Final = "cond_stage_model.model."
CLIP_XL: Final = "conditioner.embedders.0.transformer.text_model."
OPEN_CLIP_XL: Final = "conditioner.embedders.1.model."
_OLD_CLIP: Final = "cond_stage_model.transformer."
_FIRST: Final = f"{UNET}input_blocks.0.0.weight"
_XL: Final = f"{UNET}label_emb.0.0.weight"

# By a key that only they have, in the order of diffusers' `infer_diffusers_model_type`.
OTHERS: Final[tuple[tuple[str, str], ...]] = (
    ("edm_mean", "Playground 2.5, a Stable Diffusion XL"),
    ("conditioner.embedders.0.model.transformer.resblocks.9.mlp.c_proj.bias", "a Stable Diffusion XL refiner"),
    (f"{UNET}input_blocks.10.0.skip_connection.bias", "the x4 upscaler"),
    (f"{UNET}label_emb.weight", "an upscaler"),
    ("control_model.time_embed.0.weight", "a ControlNet, which belongs under `controlnets`, as a folder"),
    ("controlnet_cond_embedding.conv_in.weight", "a ControlNet, which belongs under `controlnets`, as a folder"),
    ("clip_txt_mapper.weight", "a Stable Cascade"),
    ("joint_blocks.0.context_block.adaLN_modulation.1.bias", "a Stable Diffusion 3"),
    ("down_blocks.0.motion_modules.0.temporal_transformer.norm.weight", "an AnimateDiff motion module"),
    ("distilled_guidance_layer.in_proj.bias", "a Chroma"),
    ("double_blocks.0.img_attn.norm.key_norm.scale", "a Flux"),
    ("encoder.down.0.block.0.conv1.weight", "a VAE alone, which belongs under `parts: vae`"),
    ("encoder.down_blocks.0.resnets.0.conv1.weight", "a VAE alone, which belongs under `parts: vae`"),
    ("down_blocks.0.resnets.0.conv1.weight", "a UNet in diffusers' layout, which needs its folder"),
    ("text_model.embeddings.token_embedding.weight", "a text encoder alone"),
    ("emb_params", "a textual inversion"),
)
_LORA: Final = ("lora_unet_", "lora_te", ".lora_up.", ".lora_down.", ".lora_A.", ".lora_B.", ".hada_w1", ".lokr_w1")
OTHER_CHANNELS: Final = {5: "depth-to-image, which sees depth", 7: "an upscaler", 8: "InstructPix2Pix"}
# Marks that some trainers leave in files whose schedule is not the original one. diffusers ignores them.
_ZERO_SNR: Final = "ztsnr"
_MARKS: Final = ("v_pred", _ZERO_SNR)
_SAID: Final = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}


@dataclass(frozen=True, slots=True)
class SingleFile:
    """A checkpoint in one file: its header, and what is known of it.

    `configs` has an entry for each part but the tokenizer; `pad_token` is the tokenizer's.
    """

    path: Path
    header: SafetensorsHeader
    configs: Mapping[str, Mapping[str, Any]]
    pad_token: str
    config_folder: Path | None

    @property
    def has_two_texts(self) -> bool:
        """True if it is a Stable Diffusion XL, which has two text encoders."""
        return _XL in self.header.tensors


def describe_file(
    title: str, path: Path, *, config: str, prediction_type: str, others: Iterable[str] = ()
) -> SingleFile:
    """Describes the file at `path`. Raises ModelLoadError, which begins with `title`, if it is not one that is served.

    `config` is a folder in diffusers' layout whose configs describe it, "" for a plain Stable Diffusion 1.x or 2.x;
    `prediction_type` replaces the file's own; `others` are the parts that do not come from the file.
    """
    header = read_header(title, path)
    missing = set(others)
    _refuse_other_models(title, path, header)
    if "vae" not in missing and not any(name.startswith(VAE_PREFIXES) for name in header.tensors):
        raise ModelLoadError(f"{title}: {path.name!r} has no VAE; give one under `parts: vae`")
    if _XL in header.tensors:
        _check_text_encoders_of_xl(title, path, header, missing)
    elif "text_encoder" not in missing:
        _check_text_encoder(title, path, header)
    if config:
        folder = Path(config)
        configs = _read_configs(title, folder, prediction_type, missing, has_two_texts=_XL in header.tensors)
        _check_zero_snr(title, path, header, configs)
        return SingleFile(path, header, configs, "", folder)
    family = _detect_family(title, path, header)
    predicted = _prediction_type(title, path, header, family, prediction_type, has_scheduler="scheduler" in missing)
    configs = family.configs(predicted)
    if _ZERO_SNR in header.tensors and "scheduler" not in missing:
        if predicted == "epsilon":
            raise ModelLoadError(
                f"{title}: {path.name!r} has the mark `{_ZERO_SNR}`: its pictures begin as noise alone, from which "
                "epsilon tells nothing; set `prediction_type` to v_prediction, or give a scheduler's folder under "
                "`parts: scheduler`"
            )
        configs = {**configs, "scheduler": with_zero_snr(configs["scheduler"])}
    return SingleFile(path, header, configs, family.pad_token, None)


def _refuse_other_models(title: str, path: Path, header: SafetensorsHeader) -> None:
    names = header.tensors
    if any(mark in name for name in names for mark in _LORA):
        raise ModelLoadError(f"{title}: {path.name!r} is a LoRA, which changes a checkpoint and is none itself")
    for key, what in OTHERS:
        # A whole checkpoint has its VAE under a prefix, so that the keys of single networks do not meet it.
        if key in names or f"{UNET}{key}" in names:
            raise ModelLoadError(
                f"{title}: {path.name!r} is {what}; single files are served of Stable Diffusion 1.x, 2.x and XL"
            )
    if _FIRST not in names:
        what = "has a VAE and no UNet" if any(name.startswith(VAE_PREFIXES) for name in names) else "has no UNet"
        raise ModelLoadError(f"{title}: {path.name!r} {what} in the original layout: there is no tensor {_FIRST}")


def _check_text_encoder(title: str, path: Path, header: SafetensorsHeader) -> None:
    if any(name.startswith((CLIP, OPEN_CLIP)) for name in header.tensors):
        return
    old = any(name.startswith(_OLD_CLIP) for name in header.tensors)
    what = (
        "names its text encoder's tensors as nothing else does (without `text_model.`)"
        if old
        else "has no text encoder"
    )
    raise ModelLoadError(f"{title}: {path.name!r} {what}; give one under `parts: text_encoder`")


def _check_text_encoders_of_xl(title: str, path: Path, header: SafetensorsHeader, missing: set[str]) -> None:
    for part, prefix in (("text_encoder", CLIP_XL), ("text_encoder_2", OPEN_CLIP_XL)):
        if part not in missing and not any(name.startswith(prefix) for name in header.tensors):
            raise ModelLoadError(f"{title}: {path.name!r} has no {part}; give one under `parts: {part}`")


def _detect_family(title: str, path: Path, header: SafetensorsHeader) -> Family:
    channels = header.tensors[_FIRST].shape[1]
    if channels not in (4, 9):
        what = OTHER_CHANNELS.get(channels, f"a UNet of {channels} input channels")
        raise ModelLoadError(f"{title}: {path.name!r} is {what}; single files are served with 4 and, to inpaint, 9")
    widths = {
        tensor.shape[-1]
        for name, tensor in header.tensors.items()
        if name.startswith(UNET) and name.endswith("attn2.to_k.weight")
    }
    if widths == {768}:
        return Family(1, channels == 9)
    if widths == {1024}:
        return Family(2, channels == 9)
    if widths == {2048} and _XL in header.tensors:
        return Family("XL", channels == 9)
    raise ModelLoadError(
        f"{title}: {path.name!r} is neither a Stable Diffusion 1.x, whose text is 768 wide, nor a 2.x with 1024, nor "
        "an XL with 2048; give `config`, a folder in diffusers' layout whose configs describe it"
    )


def _prediction_type(
    title: str, path: Path, header: SafetensorsHeader, family: Family, given: str, *, has_scheduler: bool
) -> PredictionType:
    if given:
        return cast(PredictionType, given)
    marks = [mark for mark in _MARKS if mark in header.tensors]
    if marks and not has_scheduler:
        raise ModelLoadError(
            f"{title}: {path.name!r} has the mark `{marks[0]}`, so its schedule is not the original one; set "
            "`prediction_type`, or give a scheduler's folder under `parts: scheduler`"
        )
    said = header.metadata.get("modelspec.prediction_type", "")
    if said in _SAID:
        return cast(PredictionType, _SAID[said])
    if family.version != 2 or family.inpainting:
        return "epsilon"
    raise ModelLoadError(
        f"{title}: a Stable Diffusion 2.x file does not say what it predicts; set `prediction_type` to v_prediction "
        "(2.0 and 2.1 at 768 pixels) or epsilon (the base models at 512)"
    )


def _check_zero_snr(title: str, path: Path, header: SafetensorsHeader, configs: Mapping[str, Any]) -> None:
    """Raises ModelLoadError if the file's mark contradicts the scheduler that `configs` has, if any."""
    is_marked = _ZERO_SNR in header.tensors and "scheduler" in configs
    if is_marked and configs["scheduler"].get("rescale_betas_zero_snr") is not True:
        raise ModelLoadError(
            f"{title}: {path.name!r} has the mark `{_ZERO_SNR}`, and the scheduler of `config` does not set "
            "`rescale_betas_zero_snr` to true; set it there, with `timestep_spacing` trailing, or give a scheduler's "
            "folder under `parts: scheduler`"
        )


def _read_configs(
    title: str, folder: Path, prediction_type: str, missing: set[str], *, has_two_texts: bool
) -> Mapping[str, Mapping[str, Any]]:
    networks = ("unet", "vae", "text_encoder", *(["text_encoder_2"] if has_two_texts else []))
    names = dict.fromkeys(networks, "config.json") | {"scheduler": "scheduler_config.json"}
    configs: dict[str, Mapping[str, Any]] = {}
    for part, file in names.items():
        if part in missing:
            continue
        try:
            configs[part] = json.loads((folder / part / file).read_text())
        except (OSError, ValueError):
            raise ModelLoadError(f"{title}: `config` has no {part}/{file} that can be read") from None
    if prediction_type and "scheduler" in configs:
        configs["scheduler"] = {**configs["scheduler"], "prediction_type": prediction_type}
    return configs
