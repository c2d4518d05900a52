"""The LoRA in a UNet while it learns: peft's layers, their weights, and the file that they become."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from deployments.training.lora.settings import LayerChoice
from deployments.whole_files import replaced

_ATTENTION: Final = ("to_q", "to_k", "to_v", "to_out.0")
_USUAL: Final = (*_ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
_CONVOLUTIONS: Final = ("conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv")
_TARGETS: Final[Mapping[LayerChoice, tuple[str, ...]]] = {
    "attention": _ATTENTION,
    "usual": _USUAL,
    "all": (*_USUAL, *_CONVOLUTIONS),
}
"""The layers by the ends of their paths."""

_ADAPTER: Final = "default"


def add_lora(unet: Any, rank: int, layers: LayerChoice, seed: int) -> list[nn.Parameter]:
    """Puts a LoRA of that `rank` into a UNet, with alpha = rank, and returns its weights, in float32.

    At first it changes nothing: the second factors are zero.
    """
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(_TARGETS[layers]), init_lora_weights=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet.add_adapter(config, adapter_name=_ADAPTER)
    cast_training_params([unet], dtype=torch.float32)
    return [weight for weight in unet.parameters() if weight.requires_grad]


@contextmanager
def without_lora(unet: Any) -> Iterator[None]:
    """Has the UNet answer as it did before its LoRA."""
    unet.disable_adapters()
    try:
        yield
    finally:
        unet.enable_adapters()


def lora_weights(unet: Any) -> dict[str, Tensor]:
    """Returns a copy of the LoRA's weights by peft's names, on the CPU."""
    return {name: weight.detach().cpu().clone() for name, weight in get_peft_model_state_dict(unet).items()}


def load_lora_weights(unet: Any, weights: Mapping[str, Tensor]) -> None:
    """Puts back what `lora_weights` gave."""
    set_peft_model_state_dict(unet, dict(weights), adapter_name=_ADAPTER)


def write_lora(path: Path, unet: Any, metadata: Mapping[str, str]) -> None:
    """Writes the LoRA as safetensors in kohya's format, which A1111, ComfyUI, diffusers and this server read.

    The names are kohya's, `lora_unet_` and the layer's path with underscores for dots; one alpha per layer.
    """
    tensors: dict[str, Tensor] = {}
    for name, layer in unet.named_modules():
        if isinstance(layer, LoraLayer):
            key = f"lora_unet_{name.replace('.', '_')}"
            tensors[f"{key}.lora_down.weight"] = layer.lora_A[_ADAPTER].weight
            tensors[f"{key}.lora_up.weight"] = layer.lora_B[_ADAPTER].weight
            tensors[f"{key}.alpha"] = torch.tensor(float(layer.lora_alpha[_ADAPTER]))
    kept = {key: tensor.detach().to("cpu", torch.float32).contiguous() for key, tensor in tensors.items()}
    with replaced(path) as neighbour:
        save_file(kept, neighbour, dict(metadata))
