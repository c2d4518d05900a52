"""On OpenVINO, too, every kind of request and every sampler gives diffusers' own images, alone and in a crowd."""

from pathlib import Path
from typing import Any

import pytest

from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.inputs import Inputs
from deployments.engine.protocol.sampler_names import SAMPLERS
from tests.deployments.engine.harness import difference, reference_image, request_for, run
from tests.deployments.engine.test_kinds import KINDS, requests_of


def test_every_sampler_in_one_crowd_gives_the_pictures_of_diffusers(
    fast_controlled: LoadedModel, tiny_checkpoint: Path
) -> None:
    settings: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 4}
    asked = [request_for(fast_controlled, name, sampler=name, **settings) for name in _served(fast_controlled)]
    assert len(asked) > 10
    tape, _ = run(fast_controlled, asked)
    for request in asked:
        reference = reference_image(tiny_checkpoint, fast_controlled, request)
        assert difference(tape.images(request.id)[0], reference) <= 1, request.id
    assert fast_controlled.backend == "openvino"


def test_every_kind_in_a_crowd_of_others_is_the_picture_of_diffusers(
    fast_controlled: LoadedModel, tiny_checkpoint: Path
) -> None:
    asked = requests_of(fast_controlled, list(KINDS), "euler_a")
    tape, _ = run(fast_controlled, asked, max_rows=32)
    for request in asked:
        reference = reference_image(tiny_checkpoint, fast_controlled, request)
        assert difference(tape.images(request.id)[0], reference) <= 1, request.id


def test_neighbours_do_not_change_a_bit_at_a_fixed_padded_size(fast_controlled: LoadedModel) -> None:
    asked = requests_of(fast_controlled, ["image-to-image", "two controlnets", "inpaint"], "dpmpp_2m")
    together, _ = run(fast_controlled, asked, padded_sizes=(16,))
    for request in asked:
        alone, _ = run(fast_controlled, [request], padded_sizes=(16,))
        assert difference(together.images(request.id)[0], alone.images(request.id)[0]) == 0, request.id


def test_an_inpainting_checkpoint_gives_the_pictures_of_diffusers(
    fast_model_9: LoadedModel, tiny_checkpoint_9: Path
) -> None:
    asked = requests_of(fast_model_9, ["inpaint, in part", "controlnet, inpaint"], "unipc")
    tape, _ = run(fast_model_9, asked)
    for request in asked:
        reference = reference_image(tiny_checkpoint_9, fast_model_9, request)
        assert difference(tape.images(request.id)[0], reference) <= 1, request.id


@pytest.mark.parametrize(
    ("prompt", "clip_skip", "size"), [("a cat " * 90, 0, (64, 64)), ("a (cat:1.3)", 2, (64, 64)), ("cup", 0, (72, 104))]
)
def test_long_prompts_skipped_layers_and_odd_sizes_are_as_on_torch(
    prompt: str, clip_skip: int, size: tuple[int, int], fast_controlled: LoadedModel, tiny_controlled: LoadedModel
) -> None:
    params = {"prompt": prompt, "clip_skip": clip_skip, "width": size[1], "height": size[0]}
    images = [
        run(model, [request_for(model, "x", Inputs(), **params)])[0].images("x")[0]
        for model in (fast_controlled, tiny_controlled)
    ]
    assert difference(*images) <= 1


def _served(model: LoadedModel) -> list[str]:
    kind = request_for(model, "x").pipeline
    return [name for name in SAMPLERS if model.samplers.of(kind).refusal(name) is None]
