"""Keys and values are computed once per prompt, and change nothing but the time of a step."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deployments.engine.conditioning.cross_attention import CrossAttentionCache, context_width
from deployments.engine.conditioning.prompt_encoder import repeat_to
from deployments.engine.models.loaded_model import LoadedModel, load_model
from tests.deployments.engine.harness import request_for, run
from tests.deployments.engine.tiny import WIDTH, tiny_unet


def arguments(rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn((rows, 4, 8, 8), generator=generator), torch.full((rows,), 300.0)


@contextmanager
def projections(unet: Any) -> Iterator[list[str]]:
    """The cross-attentions' projections, once for each time that one of them runs."""
    ran: list[str] = []
    found = [(name, module) for name, module in unet.named_modules() if name.endswith(".projection")]
    assert found
    hooks = [module.register_forward_hook(lambda *_, name=name: ran.append(name)) for name, module in found]
    try:
        yield ran
    finally:
        for hook in hooks:
            hook.remove()


def embeddings(lengths: Sequence[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn((length, WIDTH), generator=generator) for length in lengths]


@torch.inference_mode()
def test_a_unet_given_its_keys_answers_as_it_did_to_the_embeddings() -> None:
    unet, (latents, time) = tiny_unet(), arguments(4)
    prompts = embeddings((77, 77, 77, 77))
    before = unet(latents, time, encoder_hidden_states=torch.stack(prompts)).sample
    cache = CrossAttentionCache(unet)
    keys = torch.stack([cache.project(prompt).keys for prompt in prompts])
    assert keys.shape == (4, 77, context_width(unet))
    torch.testing.assert_close(unet(latents, time, encoder_hidden_states=keys).sample, before)


@torch.inference_mode()
def test_repeated_keys_are_the_keys_of_repeated_embeddings() -> None:
    unet, (latents, time) = tiny_unet(), arguments(1)
    (embedding,) = embeddings((77,))
    cache = CrossAttentionCache(unet)
    keys = cache.project(embedding).keys
    assert torch.equal(repeat_to(keys, 154), cache.project(embedding.repeat(2, 1)).keys)
    once, twice = (
        unet(latents, time, encoder_hidden_states=each[None]).sample for each in (keys, repeat_to(keys, 154))
    )
    torch.testing.assert_close(once, twice)


def test_prompts_are_projected_once_for_all_their_requests_and_to_the_same_bits(tiny_model: LoadedModel) -> None:
    texts: dict[str, Any] = {"prompt": "shared by two", "negative_prompt": "as is this"}
    with projections(tiny_model.unet) as projected:
        asked = [request_for(tiny_model, name, num_images=3, num_inference_steps=6, **texts) for name in "xy"]
        shared, _ = run(tiny_model, asked, padded_sizes=(16,))
    assert len(projected) == 2 * len(set(projected))
    for request in asked:
        fresh = load_model(tiny_model.spec, torch.device("cpu"), torch.float32)
        alone, _ = run(fresh, [request], padded_sizes=(16,))
        assert all(map(np.array_equal, shared.images(request.id), alone.images(request.id)))


@torch.inference_mode()
def test_the_oldest_keys_go_when_the_bytes_are_used_up() -> None:
    unet = tiny_unet()
    first, second, third = embeddings((77, 77, 77))
    room = 2 * CrossAttentionCache(tiny_unet()).project(first).bytes
    keys = CrossAttentionCache(unet, kept_bytes=room)
    a, _ = keys.project(first), keys.project(second)
    assert keys.project(first) is a
    keys.project(third)
    assert keys.project(first) is a
    with projections(unet) as projected:
        keys.project(third)
        assert not projected
        keys.project(second)
        assert projected
    assert CrossAttentionCache(tiny_unet(), kept_bytes=0).project(first).bytes == room // 2
