"""Writes checkpoints in the original layout: what diffusers' conversions do, the other way round."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def original_checkpoint(folder: Path, *, layers: int = 1, open_clip: bool = False) -> Tensors:
    """The networks of a checkpoint in diffusers' layout, named as CompVis (or Stability, `open_clip`) named theirs.

    `layers` is the UNet's `layers_per_block`.
    """
    unet = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    text = load_file(folder / "text_encoder" / "model.safetensors")
    vae = original_vae(folder / "vae")
    return {
        **{f"model.diffusion_model.{_unet_name(name, layers, unet)}": tensor for name, tensor in unet.items()},
        **{f"first_stage_model.{name}": tensor for name, tensor in vae.items()},
        **(_open_clip(text) if open_clip else _clip(text)),
        "alphas_cumprod": torch.linspace(1, 0, 1000),
        "cond_stage_model.transformer.text_model.embeddings.position_ids"
        if not open_clip
        else "cond_stage_model.model.logit_scale": torch.arange(77).float(),
    }


def original_xl_checkpoint(folder: Path) -> Tensors:
    """The networks of a Stable Diffusion XL checkpoint in diffusers' layout, named as Stability named them."""
    unet = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    first = load_file(folder / "text_encoder" / "model.safetensors")
    second = load_file(folder / "text_encoder_2" / "model.safetensors")
    vae = original_vae(folder / "vae")
    projection = second.pop("text_projection.weight")
    text = _open_clip(second, "conditioner.embedders.1.model.")
    text["conditioner.embedders.1.model.text_projection"] = projection.T
    return {
        **{f"model.diffusion_model.{_unet_name(name, 1, unet)}": tensor for name, tensor in unet.items()},
        **{f"first_stage_model.{name}": tensor for name, tensor in vae.items()},
        **{f"conditioner.embedders.0.transformer.text_model.{_bare(name)}": each for name, each in first.items()},
        **text,
        "conditioner.embedders.1.model.logit_scale": torch.zeros(()),
    }


def original_vae(folder: Path) -> Tensors:
    """The VAE in `folder`, as a file of a VAE alone names it."""
    vae = load_file(folder / "diffusion_pytorch_model.safetensors")
    blocks = 1 + max(int(name.split(".")[2]) for name in vae if name.startswith("decoder.up_blocks."))
    return dict(_vae_entry(name, tensor, blocks) for name, tensor in vae.items())


def write(
    path: Path, tensors: Mapping[str, Tensor], change: Callable[[Tensor], Tensor] = lambda tensor: tensor
) -> Path:
    """`tensors` as one safetensors file at `path`, each changed; returns `path`."""
    save_file({name: change(tensor).contiguous() for name, tensor in tensors.items()}, path)
    return path


def _unet_name(name: str, layers: int, unet: Mapping[str, Any]) -> str:
    for ours, theirs in _UNET.items():
        if name.startswith(f"{ours}."):
            return name.replace(ours, theirs)
    place, block, kind, index, rest = re.fullmatch(
        r"(down|mid|up)_block(?:s\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name
    ).groups()  # type: ignore[union-attr]
    inner = rest
    if kind == "resnets":
        first, _, last = rest.partition(".")
        inner = f"{_RESNET[first]}.{last}"
    if place == "mid":
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(index)}.{inner}"
    if place == "down":
        number = 1 + int(block) * (layers + 1)
        if kind == "downsamplers":
            return f"input_blocks.{number + layers}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{number + int(index)}.{int(kind == 'attentions')}.{inner}"
    number = int(block) * (layers + 1)
    if kind == "upsamplers":
        seen = any(other.startswith(f"up_blocks.{block}.attentions.") for other in unet)
        return f"output_blocks.{number + layers}.{2 if seen else 1}.{rest}"
    return f"output_blocks.{number + int(index)}.{int(kind == 'attentions')}.{inner}"


def _vae_entry(name: str, tensor: Tensor, blocks: int) -> tuple[str, Tensor]:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{blocks - 1 - int(m[1])}.block.{m[2]}", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    if "mid_block.attentions.0." in name:
        name = name.replace("mid_block.attentions.0.", "mid.attn_1.").replace("group_norm", "norm")
        if "norm" not in name:
            name = name.replace("to_out.0", "proj_out").replace("to_", "")
            tensor = tensor[:, :, None, None] if name.endswith("weight") else tensor
    return name, tensor


def _clip(text: Mapping[str, Tensor]) -> Tensors:
    return {f"cond_stage_model.transformer.text_model.{_bare(name)}": tensor for name, tensor in text.items()}


def _open_clip(text: Mapping[str, Tensor], prefix: str = "cond_stage_model.model.") -> Tensors:
    bare = {_bare(name): tensor for name, tensor in text.items()}
    made: Tensors = {}
    for name, tensor in bare.items():
        if not name.startswith("encoder.layers."):
            short = {"embeddings.position_embedding.weight": "positional_embedding"}.get(name, name)
            short = short.removeprefix("embeddings.").replace("final_layer_norm", "ln_final")
            made[prefix + short] = tensor
        elif "self_attn.q_proj" in name:
            kind = name.rpartition(".")[2]
            parts = [bare[name.replace("q_proj", which)] for which in ("q_proj", "k_proj", "v_proj")]
            made[_block(prefix, name.split("self_attn")[0]) + f"attn.in_proj_{kind}"] = torch.cat(parts)
        elif "k_proj" not in name and "v_proj" not in name:
            made[_block(prefix, name)] = tensor
    made[prefix + "text_projection"] = torch.zeros(len(made[prefix + "ln_final.bias"]), 32)
    return made


def _block(prefix: str, name: str) -> str:
    for ours, theirs in (
        ("encoder.layers.", "transformer.resblocks."),
        ("self_attn", "attn"),
        ("layer_norm", "ln_"),
        (".fc1.", ".c_fc."),
        (".fc2.", ".c_proj."),
    ):
        name = name.replace(ours, theirs)
    return prefix + name


def _bare(name: str) -> str:
    return name.removeprefix("text_model.")
