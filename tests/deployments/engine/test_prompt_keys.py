"""Keys and values are worked out once per request, and change nothing but the time that a step takes."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from deployments.engine.models import LoadedModel
from deployments.engine.prompt_keys import PromptKeys
from tests.deployments.engine.harness import request_for, run
from tests.deployments.engine.tiny import WIDTH, tiny_unet


def arguments(rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn((rows, 4, 8, 8), generator=generator), torch.full((rows,), 300.0)


def embeddings(lengths: Sequence[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn((length, WIDTH), generator=generator) for length in lengths]


@torch.inference_mode()
def test_a_unet_given_its_keys_answers_as_before() -> None:
    unet, (latents, time) = tiny_unet(), arguments(4)
    first, second = embeddings((77, 154))
    context = torch.stack([first.repeat(2, 1), second, torch.zeros_like(second), torch.zeros_like(second)])
    before = unet(latents, time, encoder_hidden_states=context).sample
    keys = PromptKeys(unet)
    with keys.given([keys.prompt(first), keys.prompt(second)], 154, 4) as given:
        torch.testing.assert_close(given, context, rtol=0, atol=0)
        after = unet(latents, time, encoder_hidden_states=torch.zeros_like(context)).sample
    torch.testing.assert_close(after[:2], before[:2])
    torch.testing.assert_close(unet(latents, time, encoder_hidden_states=context).sample, before)


@torch.inference_mode()
def test_a_call_that_fails_leaves_no_keys_behind() -> None:
    unet, (latents, time) = tiny_unet(), arguments(1)
    (embedding,) = embeddings((77,))
    keys = PromptKeys(unet)
    expected = unet(latents, time, encoder_hidden_states=embedding[None]).sample
    with pytest.raises(RuntimeError, match="injected"), keys.given([keys.prompt(embedding * 2)], 77, 1):
        raise RuntimeError("injected")
    torch.testing.assert_close(unet(latents, time, encoder_hidden_states=embedding[None]).sample, expected)


def test_prompts_are_projected_once_per_request(tiny_model: LoadedModel) -> None:
    projections = [module for name, module in tiny_model.unet.named_modules() if name.endswith("attn2.to_k.projection")]
    assert projections
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    hooks = [projection.register_forward_hook(count) for projection in projections]
    run(tiny_model, [request_for(tiny_model, "x", num_images=3, num_inference_steps=6)])
    for hook in hooks:
        hook.remove()
    assert calls == 2 * len(projections)
