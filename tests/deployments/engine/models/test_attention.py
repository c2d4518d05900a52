"""Each shape of layer gets the fastest attention, and a CPU's is never touched."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from deployments.engine.conditioning.cross_attention import CrossAttentionCache
from deployments.engine.cuda.attention_kernels import TORCH, Kernel, LayerShape, attend_by_default, kernels_for
from deployments.engine.device.errors import DeviceLost
from deployments.engine.models.attention import (
    AttentionChoice,
    adopt_attention,
    choose_attention,
    choose_kernels,
    sample_inputs,
    served_shapes,
)
from tests.deployments.engine.tiny import tiny_unet

CPU = torch.device("cpu")
LARGE, SMALL = LayerShape(64, 64, 2, 40), LayerShape(16, 77, 2, 80)


def broken(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    raise RuntimeError("no kernel for this width")


def lost(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


def choose(
    times: Mapping[LayerShape, Mapping[str, float]], kernels: Mapping[str, Kernel] | None = None
) -> AttentionChoice:
    """Chooses among kernels that take so long, in milliseconds; each is really called."""
    pending = [taken for shape in times for taken in times[shape].values()]

    def timer(call: Callable[[], object]) -> float:
        call()
        return pending.pop(0)

    names = list(next(iter(times.values())))
    return choose_kernels(
        list(times), 2, CPU, torch.float32, timer, lambda _: kernels or dict.fromkeys(names, attend_by_default)
    )


def test_short_and_long_prompts_are_shapes_of_their_own() -> None:
    shapes = served_shapes(tiny_unet(), CPU, torch.float32)
    assert shapes == [LayerShape(16, attended, 4, 8) for attended in (16, 77, 308)]


def test_every_shape_gets_its_own_fastest_kernel() -> None:
    times = {
        LARGE: {TORCH: 5.0, "flash": 4.0, "flash padded to 64": 2.0},
        SMALL: {TORCH: 1.0, "flash": 0.5, "flash padded to 64": 0.9},
    }
    choice = choose(times)
    assert choice.kernels == {LARGE: "flash padded to 64", SMALL: "flash"}
    assert choice.milliseconds == times


@pytest.mark.parametrize(
    ("times", "chosen"),
    [
        ({TORCH: 10.0, "flash": 9.8}, TORCH),
        ({TORCH: 10.0, "flash": 9.6}, "flash"),
        ({TORCH: 10.0, "flash": 8.1, "cudnn": 8.0}, "flash"),
    ],
)
def test_within_the_jitter_of_a_measurement_the_first_is_chosen(times: Mapping[str, float], chosen: str) -> None:
    assert choose({LARGE: times}).kernels[LARGE] == chosen


def test_a_kernel_that_does_not_work_is_no_reason_not_to_serve() -> None:
    choice = choose({LARGE: {TORCH: 9.0}}, {"flash": broken, TORCH: attend_by_default, "cudnn": broken})
    assert choice.kernels == {LARGE: TORCH}
    assert choice.milliseconds == {LARGE: {TORCH: 9.0}}
    assert choose({LARGE: {TORCH: 9.0}}, {TORCH: broken}).kernels == {LARGE: TORCH}


def test_a_kernel_that_takes_the_device_with_it_is_no_kernel_that_lost() -> None:
    with pytest.raises(DeviceLost):
        choose({LARGE: {TORCH: 9.0}}, {"flash": lost, TORCH: attend_by_default})


def test_a_cpu_keeps_the_attention_that_it_has() -> None:
    unet = tiny_unet()
    before = unet.attn_processors
    choice = choose_attention(unet, CPU, torch.float32)
    assert adopt_attention(unet, choice) == AttentionChoice(reason="not on CUDA")
    assert unet.attn_processors == before


def test_a_choice_is_adopted_without_a_measurement_and_changes_nothing_but_the_kernel() -> None:
    unet = tiny_unet()
    CrossAttentionCache(unet)
    inputs = sample_inputs(unet, 2, CPU, torch.float32)
    with torch.inference_mode():
        before = unet(**inputs)[0]
        adopt_attention(unet, AttentionChoice({LayerShape(16, 16, 4, 8): TORCH}))
        assert torch.allclose(unet(**inputs)[0], before, atol=1e-6)
    assert {type(each).__name__ for each in unet.attn_processors.values()} == {"ShapedAttention"}


def test_what_torch_chooses_comes_first_so_that_nothing_changes_without_a_gain() -> None:
    assert next(iter(kernels_for(40))) == TORCH
    assert {"flash", "flash padded to 64", "cudnn padded to 96", "efficient"} <= set(kernels_for(40))
    assert "flash padded to 256" not in kernels_for(40)


def test_a_choice_can_be_reported_as_text() -> None:
    assert AttentionChoice({LARGE: "flash", SMALL: TORCH}).as_text() == {"64x64x2x40": "flash", "16x77x2x80": TORCH}
