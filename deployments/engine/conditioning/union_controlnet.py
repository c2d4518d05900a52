"""A union ControlNet, one network for several kinds of hints, as one ControlNet for each kind."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deployments.engine.protocol.errors import ModelLoadError


@dataclass(frozen=True, eq=False)
class UnionControlNet:
    """A union ControlNet: diffusers' `ControlNetUnionModel` without its hint encoder, and that `embedder`."""

    network: Any
    embedder: Any


class UnionKind(nn.Module):
    """A union ControlNet for one kind of hint: it is called as diffusers' `ControlNetModel`.

    Two kinds on one row are two calls whose answers add up, as in diffusers' `MultiControlNetUnionModel`.
    """

    network: Any
    chosen: Tensor

    def __init__(self, title: str, union: UnionControlNet, mode: int) -> None:
        """`mode` is the number that the network knows the kind by. Raises ModelLoadError, which begins with `title`, if
        it knows fewer.
        """
        super().__init__()
        network = union.network
        kinds = int(network.config.num_control_type)
        if not 0 <= mode < kinds:
            raise ModelLoadError(f"{title}: its `mode` is {mode}, and the network knows {kinds}, from 0 on")
        # The union itself is kept, so that other kinds find it and share its weights.
        self.network, self._union, self._mode = network, union, mode
        weight = next(network.parameters())
        chosen = torch.zeros((1, kinds), device=weight.device, dtype=weight.dtype)
        chosen[0, mode] = 1
        self.register_buffer("chosen", chosen, persistent=False)

    @property
    def config(self) -> Any:
        """The network's config."""
        return self.network.config

    @property
    def controlnet_down_blocks(self) -> Any:
        """What makes the network's answers, but for the middle one."""
        return self.network.controlnet_down_blocks

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        controlnet_cond: Tensor,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        return_dict: bool = False,
    ) -> tuple[list[Tensor], Tensor]:
        """Returns what it adds to the UNet's maps: those on the way down, and the middle one."""
        down, middle = self.network(
            sample,
            timestep,
            encoder_hidden_states,
            [controlnet_cond],
            self.chosen.expand(sample.shape[0], -1),
            [self._mode],
            added_cond_kwargs=added_cond_kwargs,
            return_dict=False,
        )
        return down, middle
