"""The faster attention is kept, and a CPU's is never touched."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from deployments.engine.device.errors import DeviceLost
from deployments.engine.models.attention import (
    TORCH,
    XFORMERS,
    AttentionChoice,
    Switch,
    adopt_attention,
    choose_attention,
    choose_faster,
    sample_inputs,
)


class Network:
    """Remembers which attention it was switched to, and counts its calls."""

    attention = ""
    calls = 0

    def __call__(self, **inputs: Any) -> None:
        self.calls += 1


def switch_to(name: str) -> Switch:
    return lambda network: setattr(network, "attention", name)


def broken(network: Any) -> None:
    raise RuntimeError("no kernel for this head size")


BOTH: dict[str, Switch] = {TORCH: switch_to(TORCH), XFORMERS: switch_to(XFORMERS)}


def choice_for(network: Network, times: dict[str, float], candidates: dict[str, Switch]) -> AttentionChoice:
    def timer(call: Callable[[], object]) -> float:
        call()
        return times[network.attention]

    return choose_faster(network, {}, timer, candidates)


@pytest.mark.parametrize(
    ("torch_ms", "xformers_ms", "faster"), [(10.0, 8.0, XFORMERS), (8.0, 10.0, TORCH), (10.0, 9.9, TORCH)]
)
def test_the_network_is_left_with_the_faster_attention(torch_ms: float, xformers_ms: float, faster: str) -> None:
    network = Network()
    choice = choice_for(network, {TORCH: torch_ms, XFORMERS: xformers_ms}, BOTH)
    assert choice.chosen == network.attention == faster
    assert choice.milliseconds == {TORCH: torch_ms, XFORMERS: xformers_ms}
    assert network.calls == 2


def test_xformers_that_does_not_work_is_no_reason_not_to_serve() -> None:
    network = Network()
    choice = choice_for(network, {TORCH: 10.0}, {TORCH: switch_to(TORCH), XFORMERS: broken})
    assert choice.chosen == network.attention == TORCH
    assert choice.milliseconds == {TORCH: 10.0}


def test_a_candidate_that_takes_the_device_with_it_is_no_candidate_that_lost() -> None:
    def lost(_: Any) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(DeviceLost):
        choice_for(Network(), {TORCH: 10.0}, {XFORMERS: lost, TORCH: switch_to(TORCH)})


def test_a_choice_is_adopted_without_a_call(tiny_unet: UNet2DConditionModel) -> None:
    before, chosen = dict(tiny_unet.attn_processors), AttentionChoice(TORCH, {TORCH: 1.0}, "measured")
    assert adopt_attention(tiny_unet, chosen) is chosen
    assert tiny_unet.attn_processors == before


@pytest.fixture(scope="module")
def tiny_unet() -> UNet2DConditionModel:
    unet: UNet2DConditionModel = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    return unet


def test_a_cpu_keeps_the_attention_that_it_has(tiny_unet: UNet2DConditionModel) -> None:
    before = tiny_unet.attn_processors
    choice = choose_attention(tiny_unet, torch.device("cpu"), torch.float32)
    assert (choice.chosen, dict(choice.milliseconds)) == (TORCH, {})
    assert tiny_unet.attn_processors == before


def test_a_real_network_gets_its_own_processors_back(tiny_unet: UNet2DConditionModel) -> None:
    before = dict(tiny_unet.attn_processors)
    inputs = sample_inputs(tiny_unet, 2, torch.device("cpu"), torch.float32)
    answers: list[Any] = []

    def timer(call: Callable[[], object]) -> float:
        answers.append(call())
        return 1.0

    choice = choose_faster(tiny_unet, inputs, timer)
    assert choice.chosen == TORCH
    assert tiny_unet.attn_processors == before
    assert answers[0][0].shape == inputs["sample"].shape
