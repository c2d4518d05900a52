"""The parameters of a request: their limits, and how defaults are filled in."""

from typing import Any

import pytest
from pydantic import ValidationError

from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.params import GenerationParams, effective_params
from deployments.engine.protocol.spec import ModelSpec

SPEC = ModelSpec("m", "nowhere", native_size=512, default_sampler="euler", max_pixels=768 * 768)


def test_the_guide_s_parameters_are_taken_as_they_stand() -> None:
    params = GenerationParams(
        prompt="A beautiful advertisement",
        negative_prompt="blurry, low quality, distorted",
        width=512,
        height=512,
        num_images=1,
        guidance_scale=7.5,
        num_inference_steps=50,
        seed=42,
    )
    assert effective_params(params, SPEC).sampler == "euler"


def test_what_is_left_out_is_the_model_s_own() -> None:
    params = effective_params(GenerationParams(prompt="x"), SPEC)
    assert (params.width, params.height, params.model_name) == (512, 512, "m")
    assert (params.num_inference_steps, params.guidance_scale, params.seed) == (50, 7.5, None)


@pytest.mark.parametrize("name", ["EulerAncestralDiscreteScheduler", "Euler a", "euler_a"])
def test_samplers_answer_to_all_their_names(name: str) -> None:
    assert GenerationParams(prompt="x", sampler=name).sampler == "euler_a"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", "lone \ud800 surrogate"),
        ("prompt", "x" * 8001),
        ("width", 0),
        ("width", -512),
        ("width", 511),
        ("width", True),
        ("height", 512.5),
        ("height", 10**9),
        ("num_images", 0),
        ("num_images", 17),
        ("guidance_scale", -1.0),
        ("guidance_scale", float("nan")),
        ("guidance_scale", float("inf")),
        ("num_inference_steps", 0),
        ("num_inference_steps", 151),
        ("seed", -2),
        ("seed", 2**64),
        ("sampler", "no such thing"),
        ("clip_skip", -1),
        ("output_format", "gif"),
        ("widht", 512),
    ],
)
def test_a_broken_rule_names_its_field(field: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        GenerationParams.model_validate({"prompt": "x"} | {field: value})
    assert {error["loc"][0] for error in caught.value.errors()} == {field}


def test_more_pixels_than_the_model_may_make_are_refused() -> None:
    with pytest.raises(InvalidParameter) as caught:
        effective_params(GenerationParams(prompt="x", width=1024, height=1024), SPEC)
    assert caught.value.field == "width"


def test_a_lossless_file_has_no_quality() -> None:
    with pytest.raises(InvalidParameter, match="for webp and jpeg only") as refused:
        effective_params(GenerationParams(prompt="", output_quality=80), SPEC)
    assert refused.value.field == "output_quality"
    for output_format in ("webp", "jpeg"):
        params = GenerationParams.model_validate({"prompt": "", "output_quality": 80, "output_format": output_format})
        assert effective_params(params, SPEC).output_quality == 80
