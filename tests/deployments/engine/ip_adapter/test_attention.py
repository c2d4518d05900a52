"""Cross-attention looks at references beside the prompts, in every network that has it, and changes nothing without."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from torch import Tensor

from deployments.engine.conditioning.cross_attention import AttentionContext, CrossAttentionCache, context_width
from deployments.engine.conditioning.deep_cache import DeepCache
from deployments.engine.cuda.attention_kernels import ShapedAttention
from deployments.engine.ip_adapter.reference import padded_tokens, stack_references
from deployments.engine.openvino.converted_network import ConvertedNetwork
from deployments.engine.openvino.runtime import OpenVinoRuntime
from tests.deployments.engine.tiny import WIDTH, seed_weights, tiny_unet
from tests.deployments.engine.tiny_xl import tiny_xl_unet

ROWS = 3


def attending_unet(seed: int = 3) -> UNet2DConditionModel:
    """Its first and its last blocks see the text, as Stable Diffusion's do."""
    unet: UNet2DConditionModel = seed_weights(
        seed,
        lambda: UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=WIDTH,
            attention_head_dim=4,
            norm_num_groups=4,
        ),
    )
    return unet


def given(unet: Any) -> tuple[tuple[Tensor, Tensor, Tensor], AttentionContext]:
    """A call for three rows: with eight tokens of references, with none, and with five; and its context."""
    random = torch.Generator().manual_seed(0)
    width = context_width(unet)
    prompts = torch.randn((ROWS, 7, width), generator=random)
    references = [torch.randn((tokens, width), generator=random) for tokens in (8, 5)]
    stacked = stack_references([references[0], None, references[1]], prompts[0], 8)
    sample = torch.randn((ROWS, 4, 8, 8), generator=random)
    return (sample, torch.tensor([900.0, 500.0, 3.0]), prompts), stacked.beside(prompts)


@torch.inference_mode()
def test_what_is_found_in_references_is_added_as_in_diffusers() -> None:
    unet = attending_unet()
    layer = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    random = torch.Generator().manual_seed(0)
    states, text = (torch.randn(shape, generator=random) for shape in ((2, 9, 16), (2, 7, WIDTH)))
    tokens = torch.randn((2, 3, 4, WIDTH), generator=random)
    theirs = IPAdapterAttnProcessor2_0(16, WIDTH, num_tokens=(4,), scale=0.7)
    wanted = theirs(layer, states, (text, [tokens]))
    key, value = (each(tokens).flatten(1, 2) for each in (theirs.to_k_ip[0], theirs.to_v_ip[0]))
    whole = CrossAttentionCache(unet)
    own = whole._projections["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"]
    assert own.begin == 0
    prompts, references = (torch.zeros(2, length, context_width(unet)) for length in (7, 16))
    prompts[:, :, :32] = torch.cat([each.projection(text) for each in (layer.to_k, layer.to_v)], 2)
    references[:, :12, :32] = torch.cat([key, value * 0.7], 2)
    bias = torch.zeros(2, 16)
    bias[:, 12:] = -1e4
    made = layer(states, encoder_hidden_states=AttentionContext(prompts, references, bias))
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-6)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_padding_and_rows_without_references_add_nothing(dtype: torch.dtype) -> None:
    unet = attending_unet().to(dtype)
    CrossAttentionCache(unet)
    (sample, moment, prompts), context = given(unet)
    sample, context = sample.to(dtype), AttentionContext(*(each.to(dtype) for each in context))
    answer = unet(sample, moment, encoder_hidden_states=context).sample
    longer = AttentionContext(
        context.prompts,
        torch.cat([context.references, torch.full_like(context.references, 5.0)], 1),
        torch.cat([context.bias, torch.full_like(context.bias, -1e4)], 1),
    )
    again = unet(sample, moment, encoder_hidden_states=longer).sample
    torch.testing.assert_close(again, answer, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.03)
    plain = unet(sample, moment, encoder_hidden_states=prompts.to(dtype)).sample
    assert torch.equal(answer[1], plain[1])
    assert float((answer - plain)[0].abs().max()) > 0.01
    assert float((answer - plain)[2].abs().max()) > 0.01


@torch.inference_mode()
def test_attention_with_kernels_of_its_own_sees_the_references() -> None:
    unet = attending_unet()
    CrossAttentionCache(unet)
    (sample, moment, _), context = given(unet)
    wanted = unet(sample, moment, encoder_hidden_states=context).sample
    unet.set_attn_processor(ShapedAttention({}))
    torch.testing.assert_close(unet(sample, moment, encoder_hidden_states=context).sample, wanted)


@torch.inference_mode()
def test_a_shallow_call_on_what_the_deep_blocks_just_answered_is_the_whole_call() -> None:
    unet = attending_unet()
    CrossAttentionCache(unet)
    (sample, moment, prompts), context = given(unet)
    cached = DeepCache(unet)
    answer, deep = cached.run_whole(sample, moment, context, {})
    assert torch.equal(answer, unet(sample, moment, encoder_hidden_states=context).sample)
    assert torch.equal(cached.run_shallow(sample, moment, context, deep, {}), answer)
    assert not torch.equal(cached.run_shallow(sample, moment, prompts, deep, {})[0], answer[0])


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["first and last blocks", "others", "XL"])
def test_on_openvino_it_is_the_same_and_calls_without_references_are_as_they_were(kind: str, tmp_path: Path) -> None:
    make = {"first and last blocks": attending_unet, "others": tiny_unet, "XL": tiny_xl_unet}[kind]
    unet, converted = make(), make()
    CrossAttentionCache(unet)
    CrossAttentionCache(converted)
    fast = OpenVinoRuntime(1, tmp_path).run_unet(converted, "it", kind)
    (sample, moment, prompts), context = given(unet)
    more: dict[str, Any] = {}
    if kind == "XL":
        more = {"added_cond_kwargs": {"text_embeds": torch.ones(ROWS, 24), "time_ids": torch.full((ROWS, 6), 64.0)}}
    before = fast(sample, moment, prompts, **more)[0]
    for given_context in (prompts, context):
        wanted = unet(sample, moment, encoder_hidden_states=given_context, **more).sample
        assert float((fast(sample, moment, given_context, **more)[0] - wanted).abs().max()) < 1e-4
    assert torch.equal(fast(sample, moment, prompts, **more)[0], before)
    assert fast.backend == "openvino"
    if fast.deep_cache is not None:
        answer, deep = fast.deep_cache.run_whole(sample, moment, context, more)
        shallow = fast.deep_cache.run_shallow(sample, moment, context, deep, more)
        assert float((shallow - answer).abs().max()) < 1e-4


@torch.inference_mode()
def test_what_is_compiled_beforehand_for_references_is_what_their_calls_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = attending_unet()
    CrossAttentionCache(unet)
    fast: Any = OpenVinoRuntime(1, tmp_path).run_unet(unet, "it", "x")
    fast.compile_for(ROWS, 8, 8, 7, "none", "none", 8)
    fast.deep_cache.compile_for(ROWS, 8, 8, 7, "none", 8)

    def refuse(*_: Any) -> None:
        raise AssertionError("nothing is compiled now")

    monkeypatch.setattr(ConvertedNetwork, "_compile", refuse)
    (sample, moment, _), context = given(unet)
    _, deep = fast.deep_cache.run_whole(sample, moment, context, {})
    fast.deep_cache.run_shallow(sample, moment, context, deep, {})


def test_the_weights_of_large_networks_count_once_more_for_references(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.engine.openvino.converted_network.STATIC_BYTES", 0)
    unet = attending_unet()
    CrossAttentionCache(unet)
    fast: Any = OpenVinoRuntime(1, tmp_path).run_unet(unet, "it", "x")
    fast.compile_for(ROWS, 8, 8, 7)
    assert fast.changed_bytes == 0
    fast.compile_for(ROWS, 8, 8, 7, "none", "none", 8)
    assert fast.changed_bytes == fast._run._weight_bytes


def test_lengths_are_padded_to_powers_of_two() -> None:
    assert [padded_tokens(length) for length in (4, 8, 12, 16, 48, 64)] == [4, 8, 16, 16, 64, 64]
