"""A network whose normalizations are fused computes what it computed before."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from deployments.engine.cuda.group_norm import FusedGroupNorm, fuse_group_norms, normalize_groups
from deployments.engine.cuda.networks import prepare_for_cuda
from deployments.engine.lora.layer_update import LayerUpdate
from deployments.engine.lora.rows.factors import stack_updates
from deployments.engine.lora.rows.layers import apply_factors, layers_of
from tests.deployments.engine.tiny import tiny_controlnet, tiny_unet, tiny_vae


def call_unet(unet: Any) -> list[torch.Tensor]:
    return [unet(torch.ones(2, 4, 8, 8), torch.tensor([7.0, 900.0]), torch.ones(2, 77, 32), return_dict=False)[0]]


def call_controlnet(net: Any) -> list[torch.Tensor]:
    inputs = {"encoder_hidden_states": torch.ones(2, 77, 32), "controlnet_cond": torch.ones(2, 3, 64, 64)}
    down, middle = net(torch.ones(2, 4, 8, 8), torch.tensor([7.0, 900.0]), **inputs, return_dict=False)
    return [*down, middle]


def call_vae(vae: Any) -> list[torch.Tensor]:
    picture = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
    latents = vae.encode(picture, return_dict=False)[0].mean
    return [latents, vae.decode(latents, return_dict=False)[0]]


def unusual_unet() -> UNet2DConditionModel:
    """Resnets that scale and shift between normalization and SiLU, and one activation that is no SiLU."""
    unet: UNet2DConditionModel = UNet2DConditionModel.from_config(
        tiny_unet().config, resnet_time_scale_shift="scale_shift", resnet_skip_time_act=True
    )
    return unet.eval().requires_grad_(False)


Make = Callable[[], nn.Module]
Call = Callable[[Any], list[torch.Tensor]]


@pytest.mark.parametrize(
    ("make", "call", "fused"),
    [
        # Two for each resnet, one for each transformer, one at the end.
        (tiny_unet, call_unet, 2 * 8 + 4 + 1),
        (lambda: tiny_controlnet(5), call_controlnet, 2 * 4 + 2),
        (tiny_vae, call_vae, 2 * (6 + 10) + 2),
        (unusual_unet, call_unet, 4 + 1),
    ],
    ids=["unet", "controlnet", "vae", "a unet with other resnets"],
)
def test_fused_normalizations_change_nothing_but_rounding(make: Make, call: Call, fused: int) -> None:
    network = make()
    before = copy.deepcopy(network)
    fuse_group_norms(network)
    assert sum(isinstance(module, FusedGroupNorm) for module in network.modules()) == fused
    fuse_group_norms(network)  # once is enough
    with torch.inference_mode():
        for ours, theirs in zip(call(network), call(before), strict=True):
            # Of fp32 sums in another order; what they add up to is up to 4 here.
            assert torch.allclose(ours, theirs, rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("make", [tiny_unet, unusual_unet], ids=["unet", "a unet with other resnets"])
def test_loras_find_every_layer_where_it_was_and_change_the_same(make: Make) -> None:
    unet = make()
    before = copy.deepcopy(unet)
    prepare_for_cuda(unet)
    assert set(layers_of(unet)) == set(layers_of(before))
    name = next(path for path in layers_of(unet) if path.endswith("time_emb_proj"))
    rows, inputs = layers_of(before)[name].weight.shape
    factors = stack_updates([{name: LayerUpdate(torch.randn(2, inputs), torch.randn(rows, 2))}], layers_of(unet))
    with torch.inference_mode():
        (plain,) = call_unet(before)
        with apply_factors(unet, factors), apply_factors(before, factors):
            (ours,), (theirs,) = call_unet(unet), call_unet(before)
    assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3)
    assert float((ours - plain).abs().max()) > 0.05


def test_no_weight_is_copied_or_lost() -> None:
    network = tiny_vae()
    before = {parameter.data_ptr() for parameter in network.parameters()}
    fuse_group_norms(network)
    assert {parameter.data_ptr() for parameter in network.parameters()} == before


def test_the_operation_keeps_its_contract_with_torch() -> None:
    """Its shapes without data are those with data, and it hides no change of its inputs."""
    x = torch.randn(2, 8, 6, 4).to(memory_format=torch.channels_last)
    torch.library.opcheck(
        normalize_groups,
        (x, torch.randn(8), torch.randn(8), 4, 1e-5, True),
        test_utils=("test_schema", "test_faketensor"),
    )
