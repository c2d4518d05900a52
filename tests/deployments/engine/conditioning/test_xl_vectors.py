"""Learnt embeddings of two text encoders: what diffusers makes of them, and which models they are refused for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bench.engine.pipelines import arguments
from deployments.engine.models.loaded_model import LoadedModel, load_model
from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.files.embeddings import EmbeddingFile
from deployments.engine.protocol.spec import ModelSpec
from tests.deployments.engine.embedding_files import save_embedding, save_xl_embedding
from tests.deployments.engine.harness import difference, load_reference, request_for, run
from tests.deployments.engine.tiny import WIDTH
from tests.deployments.engine.tiny_xl import SECOND_WIDTH, save_tiny_xl

WIDTHS = WIDTH, SECOND_WIDTH


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_xl(tmp_path_factory.mktemp("xl"))


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return load_model(ModelSpec("xl", str(folder)), torch.device("cpu"), torch.float32)


def load_into(pipeline: Any, file: EmbeddingFile) -> None:
    """As diffusers' users load one into a pipeline of Stable Diffusion XL."""
    state = load_file(file.path)
    for key, number in (("clip_l", ""), ("clip_g", "_2")):
        encoder = getattr(pipeline, f"text_encoder{number}")
        tokenizer = getattr(pipeline, f"tokenizer{number}")
        pipeline.load_textual_inversion(state[key], token=file.token, text_encoder=encoder, tokenizer=tokenizer)


@pytest.mark.parametrize("count", [1, 3])
def test_images_are_diffusers_alone_and_beside_prompts_without(
    model: LoadedModel, folder: Path, tmp_path: Path, count: int
) -> None:
    file = save_xl_embedding(tmp_path, "cattoy", WIDTHS, count)
    asked = replace(request_for(model, "with", prompt="a red cattoy on the cup"), embeddings=(file,))
    plain = request_for(model, "without", prompt="a red cattoy on the cup")
    tape, _ = run(model, [asked, plain])
    pipeline = load_reference(folder, model, asked)
    load_into(pipeline, file)
    wanted = np.asarray(pipeline(**arguments([asked])).images[0]).astype(np.int16)
    assert difference(tape.images("with")[0], wanted) <= 1
    assert difference(tape.images("without")[0], wanted) > 1


def test_embeddings_for_another_number_of_text_encoders_or_other_widths_are_refused_by_name(
    model: LoadedModel, tiny_model: LoadedModel, tmp_path: Path
) -> None:
    one = save_embedding(tmp_path, "one")
    two, wide = (save_xl_embedding(tmp_path, name, (WIDTH, width)) for name, width in (("two", 48), ("wide", 64)))
    for wrong, encoder, rule in (
        (one, model.prompt_encoder, "is for one text encoder, and this model has 2"),
        (two, tiny_model.prompt_encoder, "is for two text encoders, and this model has 1"),
        (wide, model.prompt_encoder, "has vectors of width 32 and 64, and this model's text encoders take 32 and 48"),
    ):
        with pytest.raises(InvalidParameter, match=rule) as refused:
            encoder.encode(f"a {wrong.name}", embeddings=[wrong])
        assert refused.value.field == "prompt"
