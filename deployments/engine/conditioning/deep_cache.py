"""Runs a UNet on what its deep blocks answered in an earlier step (DeepCache: Ma, Fang and Wang, 2023)."""

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from deployments.engine.conditioning.cross_attention import AttentionContext

SHALLOW_LAYERS: Final = 2
"""The layers at the end of a UNet that still run, with as many, less one, at its start: the more, the truer."""

_DOWN: Final = ("DownBlock2D", "CrossAttnDownBlock2D")
_UP: Final = ("UpBlock2D", "CrossAttnUpBlock2D")


class DeepCache:
    """The two ways to call a UNet: whole, which also gives what its deep blocks answered; or shallow, which takes that.

    What the deep blocks answer changes little from step to step; what they cost is most of the UNet.
    """

    def __init__(self, unet: Any) -> None:
        """`unet` is diffusers' and must be one that `can_split` accepts."""
        self._unet = unet
        self._first, self._last = unet.down_blocks[0], unet.up_blocks[-1]
        skipped = int(unet.config.block_out_channels[0])
        self.channels = int(self._last.resnets[-SHALLOW_LAYERS].conv1.in_channels) - skipped
        """The channels of the deep blocks' answer, which is as large as the latents."""

    @property
    def modules(self) -> list[nn.Module]:
        """What a shallow call runs."""
        unet, layers = self._unet, [*self._first.resnets[: SHALLOW_LAYERS - 1], *self._last.resnets[-SHALLOW_LAYERS:]]
        for block, chosen in ((self._first, slice(SHALLOW_LAYERS - 1)), (self._last, slice(-SHALLOW_LAYERS, None))):
            if getattr(block, "has_cross_attention", False):
                layers += block.attentions[chosen]
        ends = (unet.time_proj, unet.time_embedding, unet.conv_in, unet.conv_norm_out, unet.conv_out)
        ends += () if unet.config.addition_embed_type is None else (unet.add_time_proj, unet.add_embedding)
        return [*layers, *(each for each in ends if each is not None)]

    def run_whole(
        self, sample: Tensor, time: Tensor, keys: Tensor | AttentionContext, more: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Returns the UNet's answer [B, C, h, w] and that of its deep blocks [B, channels, h, w].

        `more` are further arguments of the UNet.
        """
        found: list[Tensor] = []
        layer = self._last.resnets[-SHALLOW_LAYERS]
        hook = layer.register_forward_pre_hook(lambda _, given: found.append(given[0][:, : self.channels]))
        try:
            answer: Tensor = self._unet(sample, time, encoder_hidden_states=keys, **more, return_dict=False)[0]
        finally:
            hook.remove()
        return answer, found[0]

    def run_shallow(
        self, sample: Tensor, time: Tensor, keys: Tensor | AttentionContext, deep: Tensor, more: Mapping[str, Any]
    ) -> Tensor:
        """Returns the UNet's answer [B, C, h, w] if its deep blocks answered `deep`; `more` as for `run_whole`."""
        unet = self._unet
        embedding = unet.time_embedding(unet.time_proj(time).to(sample.dtype), more.get("timestep_cond"))
        added = unet.get_aug_embed(embedding, keys, more.get("added_cond_kwargs"))
        if added is not None:
            embedding = embedding + added
        skips = [unet.conv_in(sample)]
        for layer in range(SHALLOW_LAYERS - 1):
            skips.append(_run_layer(self._first, layer, skips[-1], embedding, keys))
        hidden = deep
        for layer in range(-SHALLOW_LAYERS, 0):
            hidden = _run_layer(self._last, layer, torch.cat((hidden, skips.pop()), dim=1), embedding, keys)
        if unet.conv_norm_out:
            hidden = unet.conv_act(unet.conv_norm_out(hidden))
        answer: Tensor = unet.conv_out(hidden)
        return answer


def can_split(unet: Any) -> bool:
    """Returns True if `unet` has the blocks that `DeepCache` knows at both ends."""
    down, up = unet.config.down_block_types[0], unet.config.up_block_types[-1]
    return down in _DOWN and up in _UP and len(unet.down_blocks[0].resnets) >= SHALLOW_LAYERS - 1


def _run_layer(block: Any, layer: int, hidden: Tensor, embedding: Tensor, keys: Tensor | AttentionContext) -> Tensor:
    """Runs one layer of a block: a resnet, and the attention behind it if the block has any."""
    hidden = block.resnets[layer](hidden, embedding)
    if getattr(block, "has_cross_attention", False):
        hidden = block.attentions[layer](hidden, encoder_hidden_states=keys, return_dict=False)[0]
    return hidden
