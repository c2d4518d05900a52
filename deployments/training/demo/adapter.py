"""demo-style's adapter: diffusers' own IP-Adapter in a UNet, as one network to train, and as the published file."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import ImageProjection
from safetensors.torch import save_file
from torch import Tensor, nn

from deployments.training.demo.export import replace_folder
from deployments.training.demo.learning.looks import ImageReader

FILE = "ip_adapter.safetensors"
ENCODER = "image_encoder"


class StyleAdapter(nn.Module):
    """The part of an IP-Adapter that learns, inside a UNet that stays what it is: an image's tokens, and a key and a
    value matrix for them in each layer that attends to words.

    It begins with the keys and values that words have there, and with a `projection` that says something already.
    """

    def __init__(self, unet: UNet2DConditionModel, projection: ImageProjection) -> None:
        super().__init__()
        words = unet.state_dict()
        layers = [name.removesuffix(".processor") for name in unet.attn_processors if "attn2" in name]
        start = {
            f"{number}.{ours}.weight": words[f"{layer}.{theirs}.weight"]
            for number, layer in zip(range(1, 2 * len(layers), 2), layers, strict=True)
            for ours, theirs in (("to_k_ip", "to_k"), ("to_v_ip", "to_v"))
        }
        unet.requires_grad_(False)
        unet._load_ip_adapter_weights({"image_proj": _published(projection), "ip_adapter": start}, False)
        (self.image_proj,) = unet.encoder_hid_proj.image_projection_layers
        self.ip_adapter = nn.ModuleDict({
            str(number): unet.attn_processors[f"{layer}.processor"]
            for number, layer in zip(range(1, 2 * len(layers), 2), layers, strict=True)
        })  # fmt: skip
        self.requires_grad_(True)

    def published(self) -> dict[str, Tensor]:
        """The weights by their names in the files of Ye et al. 2023."""
        layers = self.ip_adapter.state_dict()
        named = {f"ip_adapter.{name.replace('_ip.0.', '_ip.')}": weight for name, weight in layers.items()}
        return {f"image_proj.{name}": weight for name, weight in _published(self.image_proj).items()} | named


def export_adapter(adapter: StyleAdapter, reader: ImageReader, folder: Path) -> None:
    """Write the adapter's file and its image encoder as fp16 safetensors to `folder`."""

    def write(fresh: Path) -> None:
        reader.encoder.to(torch.float16).save_pretrained(fresh / ENCODER, safe_serialization=True)
        reader.processor.save_pretrained(fresh / ENCODER)
        save_file({name: weight.half().contiguous() for name, weight in adapter.published().items()}, fresh / FILE)

    replace_folder(folder, write)


def _published(projection: ImageProjection) -> dict[str, Tensor]:
    return {name.replace("image_embeds", "proj"): weight for name, weight in projection.state_dict().items()}
