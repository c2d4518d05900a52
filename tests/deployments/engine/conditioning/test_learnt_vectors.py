"""Learnt embeddings in prompts: what diffusers makes of them, where they stand, and what they leave behind."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

from deployments.engine.conditioning.embedding_layout import MOST_VECTORS
from deployments.engine.conditioning.learnt_vectors import read_vectors
from deployments.engine.conditioning.prompt_encoder import PromptEncoder
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.errors import InvalidParameter, ModelLoadError
from deployments.engine.protocol.files.embeddings import EmbeddingFile, EmbeddingTokens
from deployments.engine.protocol.request import Request
from tests.deployments.engine.embedding_files import save_embedding, vectors_of
from tests.deployments.engine.harness import difference, request_for, run, use_sampler
from tests.deployments.engine.tiny import WIDTH

CPU = torch.device("cpu")
KEYS = ("<cat-toy>", "emb_params", "clip_l", "*")


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pipeline_of(folder: Path, *files: EmbeddingFile) -> Any:
    """diffusers' pipeline with `files` loaded as its users load them."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    object.__setattr__(pipeline.text_encoder, "text_model", pipeline.text_encoder)
    for file in files:
        pipeline.load_textual_inversion(file.path, token=file.token)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def reference(pipeline: Any, prompt: str, clip_skip: int | None = None) -> Tensor:
    with torch.no_grad():
        embeddings: Tensor = pipeline.encode_prompt(prompt, CPU, 1, False, clip_skip=clip_skip)[0]
    return embeddings[0]


@pytest.fixture
def encoder(tiny_checkpoint: Path) -> PromptEncoder:
    pipeline = pipeline_of(tiny_checkpoint)
    return PromptEncoder(pipeline.tokenizer, pipeline.text_encoder, CPU, torch.float32)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("prompt", ["<cat-toy>", "a picture of <cat-toy> on the cup", "red <cat-toy>, <cat-toy>"])
def test_a_prompt_is_encoded_as_diffusers_does(
    encoder: PromptEncoder, tiny_checkpoint: Path, tmp_path: Path, key: str, count: int, prompt: str
) -> None:
    file = save_embedding(tmp_path, "cat-toy", count, key=key, token="<cat-toy>")
    pipeline = pipeline_of(tiny_checkpoint, file)
    for clip_skip in (0, 1):
        made = encoder.encode(prompt, clip_skip, embeddings=[file]).states
        assert torch.allclose(made, reference(pipeline, prompt, clip_skip or None), atol=1e-6)
    assert not torch.allclose(made, encoder.encode(prompt, 1).states, atol=1e-3)


def test_a_single_vector_without_a_second_dimension_is_read(tmp_path: Path) -> None:
    file = save_embedding(tmp_path, "flat")
    save_file({"<flat>": vectors_of("flat")[0].half()}, file.path)
    again = save_embedding(tmp_path, "other")
    flat = replace(again, path=file.path, digest=digest_of(Path(file.path)))
    assert torch.equal(read_vectors(flat)[0], vectors_of("flat").half().float())


def requests_of(model: LoadedModel, files: tuple[EmbeddingFile, ...]) -> list[Request]:
    """Prompts with one, with several, with none, and one whose negative prompt has one."""
    texts: list[dict[str, Any]] = [
        {"prompt": "a picture of <cat-toy>"},
        {"prompt": "red hat on the <cat-toy>", "seed": 2},
        {"prompt": "a red cup", "seed": 3},
        {"prompt": "a blue cup", "negative_prompt": "bad-hands, red", "seed": 4},
    ]
    tokens = EmbeddingTokens(files)
    made = [request_for(model, f"r{i}", sampler="ddim", **text) for i, text in enumerate(texts)]
    return [
        replace(each, embeddings=tokens.find_in([each.params.prompt, each.params.negative_prompt])) for each in made
    ]


def test_images_are_diffusers_alone_and_in_a_crowd(
    tiny_model: LoadedModel, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    files = (
        save_embedding(tmp_path, "cat-toy", 1, key="<cat-toy>", token="<cat-toy>"),
        save_embedding(tmp_path, "hat", 3, token="hat"),
        save_embedding(tmp_path, "bad-hands", 6, token="bad-hands"),
    )
    pipeline = pipeline_of(tiny_checkpoint, *files)
    use_sampler(pipeline, "ddim")
    requests = requests_of(tiny_model, files)
    crowd, _ = run(tiny_model, requests)
    plain, _ = run(tiny_model, [replace(requests[0], embeddings=())])
    for request in requests:
        params = request.params
        wanted = pipeline(
            params.prompt,
            negative_prompt=params.negative_prompt,
            num_inference_steps=params.num_inference_steps,
            guidance_scale=params.guidance_scale,
            height=64,
            width=64,
            generator=torch.Generator().manual_seed(params.seed or 0),
        ).images[0]
        alone, _ = run(tiny_model, [request])
        for made in (alone, crowd):
            assert difference(made.images(request.id)[0], np.asarray(wanted).astype(np.int16)) <= 1, request.id
    assert difference(crowd.images("r0")[0], plain.images("r0")[0]) > 8


def test_a_token_is_whole_and_of_any_case(encoder: PromptEncoder, tmp_path: Path) -> None:
    cat, cats = save_embedding(tmp_path, "cat"), save_embedding(tmp_path, "cat-2", 2)
    files = [cat, cats]
    for with_it in ("a CAT", "(cat:1.2)", "cat, cup", "[cat]", "cat cup BREAK cat", "x.cat"):
        assert encoder.count(with_it, embeddings=files) == encoder.count(with_it)
        assert not torch.equal(encoder.encode(with_it, embeddings=files).states, encoder.encode(with_it).states)
    for without in ("cats", "acat", "cat_s", "cat-3", "my-cat"):
        assert torch.equal(encoder.encode(without, embeddings=files).states, encoder.encode(without).states)
    assert list(EmbeddingTokens(files).split("a cat-2 and cat")) == ["a ", cats, " and ", cat]


def test_its_vectors_count_as_tokens_and_never_stand_in_two_chunks(encoder: PromptEncoder, tmp_path: Path) -> None:
    file = save_embedding(tmp_path, "hat", 7)
    assert encoder.count("hat", embeddings=[file]).tokens == 7
    assert encoder.count("a red hat cup", embeddings=[file]).tokens == 10
    filled = "word " * 70 + "hat cup"
    assert (encoder.count(filled).chunks, encoder.count(filled, embeddings=[file]).chunks) == (1, 2)
    together = encoder.encode(filled, embeddings=[file]).states
    assert torch.equal(together[:77], encoder.encode("word " * 70).states)
    assert torch.equal(together[77:], encoder.encode("hat cup", embeddings=[file]).states)


def test_a_weight_is_that_of_all_its_vectors(encoder: PromptEncoder, tmp_path: Path) -> None:
    file = save_embedding(tmp_path, "hat", 3)
    plain, weighted = (encoder.encode(text, embeddings=[file]).states for text in ("a hat cup", "a (hat:1.5) cup"))
    assert torch.allclose(weighted[2:5], 1.5 * plain[2:5])
    assert torch.equal(weighted[[0, 1, 5, 76]], plain[[0, 1, 5, 76]])


def test_prompts_are_kept_by_the_files_that_they_name(encoder: PromptEncoder, tmp_path: Path) -> None:
    one = save_embedding(tmp_path, "hat")
    other = save_embedding(tmp_path, "other")
    changed = replace(one, path=other.path, digest=other.digest)
    first = encoder.encode("a hat", embeddings=[one]).states
    assert encoder.encode("a hat", embeddings=[one, other]).states is first
    assert not torch.equal(encoder.encode("a hat", embeddings=[changed]).states, first)
    assert encoder.encode("a hat", embeddings=[one]).states is first


def test_nothing_stays_in_the_text_encoder(encoder: PromptEncoder, tmp_path: Path) -> None:
    before = encoder.encode("a red cup").states.clone()
    state = {name: weight.clone() for name, weight in encoder.text_encoders[0].state_dict().items()}
    file = save_embedding(tmp_path, "hat", 4)
    encoder.encode("a red hat", embeddings=[file])
    broken = replace(file, digest="0" * 64)
    with pytest.raises(ModelLoadError):
        encoder.encode("the hat", embeddings=[broken])
    assert all(torch.equal(weight, state[name]) for name, weight in encoder.text_encoders[0].state_dict().items())
    encoder._cache.clear()
    assert torch.equal(encoder.encode("a red cup").states, before)


def test_another_width_is_refused_by_name(encoder: PromptEncoder, tmp_path: Path) -> None:
    wide = save_embedding(tmp_path, "wide", width=2 * WIDTH)
    with pytest.raises(
        InvalidParameter, match=f"the embedding 'wide', which has vectors of width {2 * WIDTH}"
    ) as caught:
        encoder.encode("a wide cup", 0, "negative_prompt", embeddings=[wide])
    assert caught.value.field == "negative_prompt"
    with pytest.raises(InvalidParameter, match="'wide'"):
        encoder.count("a wide cup", embeddings=[wide])
    assert torch.equal(encoder.encode("a cup", embeddings=[wide]).states, encoder.encode("a cup").states)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"clip_l": torch.ones(1, 32), "clip_g": torch.ones(2, 64)}, "as many vectors for one text encoder"),
        ({"clip_g": torch.ones(1, 64)}, "has `clip_g` alone"),
        ({"a": torch.ones(1, 32), "b": torch.ones(1, 32)}, "must have one tensor.*it has 2"),
        ({"a": torch.ones(1, 2, 32)}, r"\[1, 2, 32\]"),
        ({"a": torch.ones(MOST_VECTORS + 1, 32)}, "1 to 75 vectors"),
        ({"a": torch.ones(1, 32, dtype=torch.int64)}, "its vectors are I64"),
        ({"a": torch.full((1, 32), float("nan"))}, "not finite"),
    ],
)
def test_what_is_no_embedding_is_refused_by_name(tmp_path: Path, tensors: dict[str, Tensor], says: str) -> None:
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    with pytest.raises(ModelLoadError, match=f"embedding 'x'.*{says}"):
        read_vectors(EmbeddingFile("x", "x", str(path), digest_of(path), 1, 32))
