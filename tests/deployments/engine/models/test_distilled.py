"""Models distilled to few steps: Turbo, Lightning and LCM of Stable Diffusion XL, by rows' own defaults."""

from pathlib import Path
from typing import Any, Final

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, LCMScheduler

from deployments.engine.models.loaded_model import load_model
from deployments.engine.protocol.inputs import Inputs
from deployments.engine.protocol.params import GenerationParams, effective_params
from deployments.engine.protocol.spec import ModelSpec
from tests.deployments.engine.harness import difference, reference_image, request_for, run
from tests.deployments.engine.test_kinds import half_mask, picture
from tests.deployments.engine.tiny_xl import SCHEDULE, save_tiny_xl

CPU: Final = torch.device("cpu")
FEW: Final = ModelSpec("few", "nowhere", native_size=64, default_steps=4, default_guidance_scale=0.0)

KINDS: Final[dict[str, tuple[Inputs, dict[str, Any]]]] = {
    "text": (Inputs(), {}),
    "one step": (Inputs(), {"num_inference_steps": 1}),
    "guided all the same": (Inputs(), {"guidance_scale": 2.0}),
    "image": (Inputs(image=picture(1)), {"num_inference_steps": 4, "strength": 0.5}),
    "inpaint": (Inputs(image=picture(2), mask=half_mask()), {"strength": 1.0}),
}


def requests_for(model: Any, **changed: Any) -> list[Any]:
    return [
        request_for(model, name, inputs, **({"num_inference_steps": 4, "guidance_scale": 0.0} | asked | changed))
        for name, (inputs, asked) in KINDS.items()
    ]


@pytest.mark.parametrize(
    ("scheduler", "sampler"),
    [
        (EulerAncestralDiscreteScheduler(**SCHEDULE, timestep_spacing="trailing"), "checkpoint"),
        (EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="trailing"), "checkpoint"),
        (EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="leading", steps_offset=1), "euler_trailing"),
    ],
    ids=["Turbo's scheduler", "Lightning's scheduler", "Lightning's sampler by name"],
)
def test_without_guidance_and_with_trailing_steps_pictures_are_those_of_diffusers(
    scheduler: Any, sampler: str, tmp_path: Path
) -> None:
    folder = save_tiny_xl(tmp_path, scheduler=scheduler)
    model = load_model(ModelSpec("xl", str(folder)), CPU, torch.float32)
    asked = requests_for(model, sampler=sampler)
    tape, _ = run(model, asked)
    for request in asked:
        assert difference(tape.images(request.id)[0], reference_image(folder, model, request)) <= 1, request.id


def test_a_latent_consistency_model_is_told_the_guidance(tmp_path: Path) -> None:
    folder = save_tiny_xl(tmp_path, guidance_width=16, scheduler=LCMScheduler(**SCHEDULE, clip_sample=False))
    model = load_model(ModelSpec("xl", str(folder)), CPU, torch.float32)
    asked = requests_for(model, guidance_scale=3.0)
    tape, engine = run(model, asked)
    assert engine.tracker.total.unet_calls == 4
    assert all(request.unet_rows == 2 for request in asked)  # until the model is known
    for request in asked:
        assert difference(tape.images(request.id)[0], reference_image(folder, model, request)) <= 1, request.id


def test_a_rows_defaults_are_for_callers_who_say_nothing() -> None:
    silent = effective_params(GenerationParams(prompt="x"), FEW)
    assert (silent.num_inference_steps, silent.guidance_scale) == (4, 0.0)
    said = effective_params(GenerationParams(prompt="x", num_inference_steps=50, guidance_scale=7.5), FEW)
    assert (said.num_inference_steps, said.guidance_scale) == (50, 7.5)
    assert effective_params(silent, FEW) == silent
