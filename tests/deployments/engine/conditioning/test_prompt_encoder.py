"""The laws of prompt encoding, on a tiny real CLIP text encoder and UNet."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from deployments.engine.conditioning.prompt_encoder import CacheStats, PromptEncoder, emphasise, repeat_to
from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.report import TokenCount
from tests.deployments.engine.tiny import WIDTH, tiny_tokenizer, tiny_unet

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint: Path) -> Any:
    pipeline = StableDiffusionPipeline.from_pretrained(
        tiny_checkpoint, safety_checker=None, requires_safety_checker=False
    )
    # transformers 5 has no `text_model` any more, diffusers 0.42 still asks for it when clip_skip is given.
    object.__setattr__(pipeline.text_encoder, "text_model", pipeline.text_encoder)
    return pipeline


@pytest.fixture
def encoder(pipeline: Any) -> PromptEncoder:
    return PromptEncoder(pipeline.tokenizer, pipeline.text_encoder, CPU, torch.float32)


def reference(pipeline: Any, prompt: str, clip_skip: int | None = None) -> Tensor:
    """What diffusers' pipeline makes of `prompt`, [77, dim]."""
    with torch.no_grad():
        embeddings: Tensor = pipeline.encode_prompt(prompt, CPU, 1, False, clip_skip=clip_skip)[0]
    return embeddings[0]


class RecordingEncoder:
    """A text encoder that remembers the token ids it was given."""

    def __init__(self, text_encoder: Any) -> None:
        self._text_encoder = text_encoder
        self.config = text_encoder.config
        self.seen: list[list[int]] = []
        self.masks: list[Tensor | None] = []

    def __call__(self, ids: Tensor, **kwargs: Any) -> Any:
        self.seen += ids.tolist()
        self.masks.append(kwargs["attention_mask"])
        return self._text_encoder(ids, **kwargs)

    def named_modules(self) -> Any:
        return self._text_encoder.named_modules()


@pytest.fixture
def recording(pipeline: Any) -> RecordingEncoder:
    return RecordingEncoder(pipeline.text_encoder)


@pytest.fixture
def record_tokens(pipeline: Any, recording: RecordingEncoder) -> PromptEncoder:
    return PromptEncoder(pipeline.tokenizer, recording, CPU, torch.float32)


def own_tokens(pipeline: Any, seen: list[list[int]]) -> list[int]:
    """The prompt's own tokens: what stands between start and first end token of each chunk."""
    return [token for ids in seen for token in ids[1 : ids.index(pipeline.tokenizer.eos_token_id)]]


@pytest.mark.parametrize("prompt", ["", "a red cup", "the blue cat, 4k é\0 \n日本", "word " * 75])
@pytest.mark.parametrize("clip_skip", [0, 1, 2])
def test_an_unweighted_prompt_is_bit_for_bit_diffusers(
    pipeline: Any, encoder: PromptEncoder, prompt: str, clip_skip: int
) -> None:
    assert torch.equal(encoder.encode(prompt, clip_skip).states, reference(pipeline, prompt, clip_skip or None))


def test_another_padding_token_is_obeyed(pipeline: Any) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = "a"
    components = pipeline.components | {"tokenizer": tokenizer}
    other = StableDiffusionPipeline(**components, requires_safety_checker=False)
    encoder = PromptEncoder(tokenizer, pipeline.text_encoder, CPU, torch.float32)
    assert torch.equal(encoder.encode("a red cup").states, reference(other, "a red cup"))
    assert not torch.equal(encoder.encode("a red cup").states, reference(pipeline, "a red cup"))


def test_a_text_encoder_that_masks_padding_is_obeyed(
    pipeline: Any, record_tokens: PromptEncoder, recording: RecordingEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.text_encoder.config, "use_attention_mask", True, raising=False)
    assert torch.equal(record_tokens.encode("a red cup").states, reference(pipeline, "a red cup"))
    assert recording.masks[0] is not None
    assert recording.masks[0].sum() == 5


def test_a_weight_of_one_is_no_weight(encoder: PromptEncoder) -> None:
    assert torch.equal(encoder.encode("a (red:1.0) cup").states, encoder.encode("a red cup").states)


def test_weights_change_tokens_in_proportion(pipeline: Any, encoder: PromptEncoder) -> None:
    plain, weighted = encoder.encode("a red cup").states, encoder.encode("a (red:1.5) cup").states
    # This encoder's final layer norm has no bias, so its mean is nothing to restore.
    assert torch.allclose(weighted[2], 1.5 * plain[2])
    assert torch.equal(weighted[[0, 1, 3, 4, 76]], plain[[0, 1, 3, 4, 76]])


def test_emphasis_keeps_the_mean() -> None:
    hidden = torch.randn(77, 32, generator=torch.Generator().manual_seed(0)) - 0.5
    weights = torch.ones(77, 1)
    weights[3:9] = 1.4
    weighted = emphasise(hidden, weights)
    assert weighted.mean() == pytest.approx(hidden.mean().item(), rel=1e-5)
    assert torch.allclose(weighted[3] / weighted[20], 1.4 * hidden[3] / hidden[20], rtol=1e-4)


def test_emphasis_never_restores_a_mean_that_is_noise() -> None:
    hidden = torch.randn(77, 32, generator=torch.Generator().manual_seed(0))
    hidden -= hidden.mean()
    weights = torch.full((77, 1), 2.0)
    assert torch.equal(emphasise(hidden, weights), 2 * hidden)


@pytest.mark.parametrize(("tokens", "chunks"), [(0, 1), (75, 1), (76, 2), (150, 2), (151, 4), (300, 4)])
def test_long_prompts_use_more_chunks_and_lose_no_token(
    pipeline: Any, record_tokens: PromptEncoder, recording: RecordingEncoder, tokens: int, chunks: int
) -> None:
    words = " ".join(("a", "red", "cup", "the", "cat")[i % 5] for i in range(tokens))
    assert record_tokens.encode(words).states.shape == (77 * chunks, WIDTH)
    assert all(len(ids) == 77 and ids[0] == pipeline.tokenizer.bos_token_id for ids in recording.seen)
    assert own_tokens(pipeline, recording.seen) == pipeline.tokenizer(words).input_ids[1:-1]


def test_a_chunk_is_encoded_as_if_alone(encoder: PromptEncoder) -> None:
    first, second = encoder.encode("a red cup BREAK the cat").states.split(77)
    assert torch.equal(first, encoder.encode("a red cup").states)
    assert torch.equal(second, encoder.encode("the cat").states)


@pytest.mark.parametrize(("prompt", "chunks"), [("a BREAK", 1), ("BREAK a", 2), ("a BREAK BREAK b", 4), ("BREAK", 1)])
def test_break_starts_a_chunk(encoder: PromptEncoder, prompt: str, chunks: int) -> None:
    assert len(encoder.encode(prompt).states) == 77 * chunks


@pytest.mark.parametrize(("prompt", "tokens", "chunks"), [("a " * 301, 301, 5), ("a BREAK " * 5 + "a", 6, 6)])
def test_a_prompt_beyond_the_limit_is_refused_with_numbers(
    encoder: PromptEncoder, prompt: str, tokens: int, chunks: int
) -> None:
    with pytest.raises(InvalidParameter, match=f"{tokens} tokens, in {chunks} chunks; the limit is 300") as caught:
        encoder.encode(prompt, field="negative_prompt")
    assert caught.value.field == "negative_prompt"


@pytest.mark.parametrize("special", ["<|endoftext|>", "<|startoftext|>"])
def test_special_tokens_in_a_prompt_are_plain_text(
    pipeline: Any, record_tokens: PromptEncoder, recording: RecordingEncoder, special: str
) -> None:
    record_tokens.encode(f"a {special} cup")
    (ids,) = recording.seen
    kept = own_tokens(pipeline, recording.seen)
    assert pipeline.tokenizer.bos_token_id not in kept
    assert pipeline.tokenizer.decode(kept).replace(" ", "") == f"a{special}cup"
    assert ids[len(kept) + 1 :] == [pipeline.tokenizer.eos_token_id] * (76 - len(kept))


@pytest.mark.parametrize("clip_skip", [-1, 3, 12])
def test_a_clip_skip_that_leaves_no_layer_is_refused(encoder: PromptEncoder, clip_skip: int) -> None:
    with pytest.raises(InvalidParameter, match="between 0 and 2") as caught:
        encoder.encode("a red cup", clip_skip)
    assert caught.value.field == "clip_skip"


def test_embeddings_carry_no_graph_and_the_asked_dtype(pipeline: Any) -> None:
    encoder = PromptEncoder(pipeline.tokenizer, pipeline.text_encoder, CPU, torch.float64)
    embedding = encoder.encode("a (red:1.2) cup").states
    assert embedding.dtype == torch.float64
    assert not embedding.requires_grad


@pytest.mark.parametrize("copies", [2, 4])
def test_a_repeated_embedding_gives_the_same_picture(encoder: PromptEncoder, copies: int) -> None:
    unet, embedding = tiny_unet(), encoder.encode("a red cup").states
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    once, repeated, other = (
        unet(latents, 500, text[None]).sample
        for text in (embedding, repeat_to(embedding, 77 * copies), encoder.encode("the cat").states)
    )
    assert torch.allclose(once, repeated, atol=1e-5, rtol=0)
    assert not torch.allclose(once, other, atol=1e-2, rtol=0)


def test_repeating_needs_a_multiple() -> None:
    embedding = torch.zeros(77, 2)
    assert repeat_to(embedding, 77) is embedding
    with pytest.raises(ValueError, match="cannot repeat 77 tokens to 100"):
        repeat_to(embedding, 100)
    with pytest.raises(ValueError, match="cannot repeat"):
        repeat_to(torch.zeros(154, 2), 77)


def test_a_known_prompt_is_not_encoded_again(record_tokens: PromptEncoder, recording: RecordingEncoder) -> None:
    first = record_tokens.encode("a red cup").states
    assert record_tokens.encode("a red cup", field="negative_prompt").states is first
    assert record_tokens.encode("a red cup", 1).states is not first
    assert record_tokens.cache_stats == CacheStats(hits=1, misses=2, entries=2)
    assert len(recording.seen) == 2


def test_the_least_recently_used_prompt_leaves_a_full_cache(pipeline: Any) -> None:
    encoder = PromptEncoder(pipeline.tokenizer, pipeline.text_encoder, CPU, torch.float32, cache_size=2)
    first = encoder.encode("a").states
    encoder.encode("b")
    encoder.encode("a")
    encoder.encode("c")
    assert encoder.encode("a").states is first
    encoder.encode("b")
    assert encoder.cache_stats == CacheStats(hits=2, misses=4, entries=2)


def test_max_chunks_is_a_power_of_two(pipeline: Any) -> None:
    with pytest.raises(ValueError, match="power of two"):
        PromptEncoder(pipeline.tokenizer, pipeline.text_encoder, CPU, torch.float32, max_chunks=3)


@pytest.mark.parametrize(
    ("prompt", "tokens", "chunks"),
    [("", 0, 1), ("a (red:1.3) cup", 3, 1), ("a cup BREAK a cat", 4, 2), ("cat " * 75, 75, 1), ("cat " * 301, 301, 5)],
)
def test_tokens_are_counted_as_encoding_would_lay_them_out(
    encoder: PromptEncoder, prompt: str, tokens: int, chunks: int
) -> None:
    assert encoder.count(prompt) == TokenCount(tokens, chunks, 75, 4)
    if chunks <= 4:
        assert encoder.encode(prompt).states.shape[0] == 77 * (1 << (chunks - 1).bit_length())
    else:
        with pytest.raises(InvalidParameter, match=f"it has {tokens} tokens, in {chunks} chunks"):
            encoder.encode(prompt)


def test_counting_names_the_field_whose_weight_is_wrong(encoder: PromptEncoder) -> None:
    with pytest.raises(InvalidParameter) as caught:
        encoder.count("(cat:99)", "negative_prompt")
    assert caught.value.field == "negative_prompt"
