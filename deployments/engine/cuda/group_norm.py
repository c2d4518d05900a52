"""Normalizes groups of channels, and takes SiLU of the answer, in one operation that keeps activations channels-last.

On CUDA it is our own kernel: torch's is about two times slower in this layout than in the other, and SiLU would read
and write everything once more. On other devices it is what torch computes, which is what the kernel is tested against.
"""

from typing import Any

import torch
from diffusers import Transformer2DModel, UNet2DConditionModel
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional


@torch.library.custom_op("darkroom::normalize_groups", mutates_args=())
def normalize_groups(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
    """Returns the group normalization of `x` [B, C, h, w] (Wu and He, 2018), or its SiLU, channels-last."""
    normalized = functional.group_norm(x, groups, weight, bias, eps)
    return (functional.silu(normalized) if silu else normalized).contiguous(memory_format=torch.channels_last)


@normalize_groups.register_kernel("cuda")
def _on_cuda(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
    from deployments.engine.cuda.group_norm_kernels import launch_group_norm  # Triton comes with torch for CUDA only

    with torch.cuda.device_of(x):  # Triton launches on the current device, whatever it is given
        return launch_group_norm(x, weight, bias, groups, eps, silu)


@normalize_groups.register_fake
def _shape(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


class FusedGroupNorm(nn.Module):
    """Takes the place of a GroupNorm, and of the SiLU behind it if `silu`; its parameters keep their names."""

    def __init__(self, norm: nn.GroupNorm, *, silu: bool) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.groups, self.eps, self.silu = norm.num_groups, norm.eps, silu

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = normalize_groups(x, self.weight, self.bias, self.groups, self.eps, self.silu)
        return answer


def fuse_group_norms(network: nn.Module) -> None:
    """Replaces the group normalizations of a diffusers UNet, ControlNet or VAE, with the SiLU behind them.

    In place, and only once: what is replaced already stays. Blocks that do something between the two keep both.
    """
    modules: list[Any] = list(network.modules())
    for module in modules:
        match module:
            case ResnetBlock2D() if _has_plain_norms(module):
                _fuse_resnet(module)
            case UNet2DConditionModel() | Encoder() | Decoder() if _is_pair(module.conv_norm_out, module.conv_act):
                module.conv_norm_out = FusedGroupNorm(module.conv_norm_out, silu=True)
                module.conv_act = nn.Identity()
            case Transformer2DModel() if isinstance(module.norm, nn.GroupNorm):
                module.norm = FusedGroupNorm(module.norm, silu=False)


def _is_pair(norm: object, activation: object) -> bool:
    return isinstance(norm, nn.GroupNorm) and isinstance(activation, nn.SiLU)


def _has_plain_norms(block: Any) -> bool:
    return _is_pair(block.norm1, block.nonlinearity) and block.time_embedding_norm != "scale_shift"


def _fuse_resnet(block: Any) -> None:
    # The block takes SiLU of its time embedding with the module that goes. The layer stays where LoRAs look for it.
    if block.time_emb_proj is not None and not block.skip_time_act:
        block.time_emb_proj.register_forward_pre_hook(_take_silu)
    block.norm1 = FusedGroupNorm(block.norm1, silu=True)
    block.norm2 = FusedGroupNorm(block.norm2, silu=True)
    block.nonlinearity = nn.Identity()


def _take_silu(_layer: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    return functional.silu(inputs[0])
