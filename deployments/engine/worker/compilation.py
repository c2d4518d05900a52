"""Compiles a model's networks on CUDA before it serves: for calls at its native size, of prompts of one chunk."""

import logging
import time
from collections.abc import Collection
from typing import Any, Final

import torch
from torch import Tensor

from deployments.engine.conditioning.added_conditions import sample_conditions
from deployments.engine.conditioning.controlnet import ControlNet
from deployments.engine.conditioning.cross_attention import context_width
from deployments.engine.cuda.compiled_calls import CompilableNetwork, CompilableVae
from deployments.engine.models.attention import TOKENS
from deployments.engine.models.loaded_model import LoadedModel

log = logging.getLogger(__name__)

_ROWS: Final = 2
"""The batch is left open when a network is compiled; only a batch of one is another matter."""


@torch.inference_mode()
def compile_networks(model: LoadedModel, in_use: Collection[object] = ()) -> None:
    """Compiles what of `model` can be, in the very kinds of calls that steps and the decoder make.

    That is the UNet with ControlNets and without, each ControlNet, and the VAE's decoder. Networks `in_use` by other
    models are left as they are: these have compiled them. What cannot be compiled runs as it is, and a warning says so.
    """
    if not isinstance(model.unet, CompilableNetwork):
        return
    started = time.perf_counter()
    inputs = _Inputs(model)
    model.unet.calls.compile(*inputs.unet, **inputs.unet_named)
    if isinstance(model.vae, CompilableVae) and model.vae not in in_use:
        for batch in (_ROWS, 1):
            model.vae.calls.compile(inputs.latents[:batch].to(model.vae_dtype), return_dict=False)
    for net in model.controlnets.values():
        if isinstance(net.network, CompilableNetwork) and net.network not in in_use:
            given, named = inputs.controlnet(net)
            net.network.calls.compile(*given, **named)
    # What they add to the UNet's maps has the same shapes for all of them, averages apart.
    adding = [net for net in model.controlnets.values() if not net.is_prompted_only]
    if adding:
        model.unet.calls.compile(*inputs.unet, **inputs.residuals(adding[0]), **inputs.unet_named)
    if model.compiled:
        seconds = time.perf_counter() - started
        log.info("model %s: compiled in %.0f s: %s", model.spec.name, seconds, ", ".join(model.compiled))


class _Inputs:
    """What networks are called with in a step of two rows."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        height, width = (side // model.factor for side in model.spec.native)
        self._size = height, width
        self.latents = self._zeros(model.channels, height, width)
        self._time = torch.full((_ROWS,), 500.0, device=model.device)
        sample = self._zeros(int(model.unet.config.in_channels), height, width)
        self.unet = sample, self._time
        self.unet_named: dict[str, Any] = {
            "encoder_hidden_states": self._zeros(TOKENS[0], context_width(model.unet)),
            "return_dict": False,
            **sample_conditions(model.unet, _ROWS, model.device, model.dtype),
        }
        if model.guidance_width is not None:
            self.unet_named["timestep_cond"] = self._zeros(model.guidance_width)

    def controlnet(self, net: ControlNet) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
        """Returns the positional and the named arguments of a call of `net`."""
        hint = net.network.config.block_out_channels[0]
        named = {
            "encoder_hidden_states": self._zeros(TOKENS[0], context_width(net.network)),
            "controlnet_cond": self._zeros(hint, *self._size),
            "return_dict": False,
            **sample_conditions(net.network, _ROWS, self._model.device, self._model.dtype),
        }
        return (self.latents, self._time), named

    def residuals(self, net: ControlNet) -> dict[str, Any]:
        """Returns the named arguments that `net` adds to the UNet's."""
        inputs, named = self.controlnet(net)
        plain = net.network.plain if isinstance(net.network, CompilableNetwork) else net.network
        down, middle = plain(*inputs, **named)
        *totals, last = (self._zeros(*each.shape[1:]) for each in (*down, middle))
        return {"down_block_additional_residuals": tuple(totals), "mid_block_additional_residual": last}

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros((_ROWS, *shape), device=self._model.device, dtype=self._model.dtype)
