"""Textual inversions that a LoRA's file brings along stand in the prompts of the requests that name the LoRA."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.engine.pipelines import arguments
from deployments.engine.lora.adapter import Adapter
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.events import Failed
from deployments.engine.protocol.files.loras import LoraFile
from deployments.engine.protocol.request import Request
from tests.deployments.engine.embedding_files import save_embedding, vectors_of
from tests.deployments.engine.harness import Pixels, difference, load_reference, request_for, run
from tests.deployments.engine.lora.rows.loras import ATTENTION, TEXT, TinyLora, with_loras
from tests.deployments.engine.lora.rows.loras import reading as reading_without_vectors
from tests.deployments.engine.tiny import WIDTH

LORAS = {
    "cup": TinyLora("cup", 1, 4, ATTENTION, TEXT, strength=0.3),
    "hat": TinyLora("hat", 2, 2, ATTENTION),
    "other": TinyLora("other", 3, 2, ATTENTION),
}
BUNDLED: Mapping[str, Mapping[str, Tensor]] = {
    "cup": {"my-cup": vectors_of("my-cup", 3), "worn": vectors_of("worn")},
    "hat": {"hat-2": vectors_of("hat-2", 2), "worn": vectors_of("worn")},
    "other": {"Worn": vectors_of("another")},
}


def reading() -> Callable[[LoraFile], Adapter]:
    return lambda file: replace(LORAS[file.name].adapter(), embeddings=BUNDLED[file.name])


def reference(folder: Path, model: LoadedModel, request: Request) -> Pixels:
    """What a diffusers user gets who loads a LoRA, and the textual inversions that came with it."""
    pipeline = load_reference(folder, model, request)
    for use in request.loras:
        pipeline.load_lora_weights(LORAS[use.file.name].state(), adapter_name=use.file.name)
        for token, vectors in BUNDLED[use.file.name].items():
            pipeline.load_textual_inversion({token: vectors}, token=token)
    if request.loras:
        pipeline.set_adapters([use.file.name for use in request.loras], [use.scale for use in request.loras])
    return np.asarray(pipeline(**arguments([request], 0)).images[0]).astype(np.int16)


def asked_of(model: LoadedModel) -> list[Request]:
    prompt = "a my-cup on the worn cup"
    settings: dict[str, Any] = {"num_inference_steps": 4, "sampler": "euler_a", "guidance_scale": 4}
    cup, hat = LORAS["cup"].use(0.7), LORAS["hat"].use(0.9)
    return [
        with_loras(request_for(model, "named", prompt=prompt, **settings), cup),
        with_loras(request_for(model, "negative", prompt="a cup", negative_prompt="worn", **settings), hat),
        with_loras(request_for(model, "not named", prompt="a cup", **settings), cup),
        request_for(model, "without the LoRA", prompt=prompt, **settings),
    ]


def test_images_are_diffusers_alone_and_in_a_crowd(tiny_model: LoadedModel, tiny_checkpoint: Path) -> None:
    requests = asked_of(tiny_model)
    crowd, _ = run(tiny_model, requests, read_adapter=reading())
    for request in requests:
        wanted = reference(tiny_checkpoint, tiny_model, request)
        alone, _ = run(tiny_model, [request], read_adapter=reading())
        for made in (alone, crowd):
            assert difference(made.images(request.id)[0], wanted) <= 1, request.id
    plain, _ = run(tiny_model, requests[:2], read_adapter=reading_without_vectors(LORAS))
    for request in requests[:2]:
        assert difference(crowd.images(request.id)[0], plain.images(request.id)[0]) > 4, request.id


def test_its_own_go_before_a_file_of_the_same_token(tiny_model: LoadedModel, tmp_path: Path) -> None:
    (request, *_) = asked_of(tiny_model)
    alone, _ = run(tiny_model, [request], read_adapter=reading())
    with_file = replace(request, embeddings=(save_embedding(tmp_path, "worn", 2, token="worn"),))
    beside, _ = run(tiny_model, [with_file], read_adapter=reading())
    assert difference(alone.images(request.id)[0], beside.images(request.id)[0]) == 0


@pytest.mark.parametrize(("names", "says"), [(("cup", "hat"), None), (("cup", "other"), "different textual")])
def test_two_loras_may_bring_the_same_along_and_not_two_of_one_token(
    names: tuple[str, str], says: str | None, tiny_model: LoadedModel
) -> None:
    request = with_loras(request_for(tiny_model, "x", prompt="worn"), *(LORAS[name].use() for name in names))
    tape, _ = run(tiny_model, [request], read_adapter=reading())
    failed = tape.of("x", Failed)
    if says is None:
        assert not failed
        return
    assert isinstance(failed[0].error, InvalidParameter)
    assert failed[0].error.field == "loras"
    assert says in failed[0].error.message


def test_vectors_of_another_width_are_refused_when_a_prompt_names_them(tiny_model: LoadedModel) -> None:
    def read(file: LoraFile) -> Adapter:
        wide: dict[str, Any] = {"wide": torch.zeros(1, 2 * WIDTH)}
        return replace(LORAS[file.name].adapter(), embeddings=wide)

    for prompt, is_refused in (("a wide cup", True), ("a cup", False)):
        request = with_loras(request_for(tiny_model, "x", prompt=prompt), LORAS["cup"].use())
        tape, _ = run(tiny_model, [request], read_adapter=read)
        assert bool(tape.of("x", Failed)) == is_refused
