"""A union ControlNet is a ControlNet for each of its kinds, as in diffusers' pipeline for it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetUnionModel, StableDiffusionXLControlNetUnionPipeline
from diffusers.models.controlnets.multicontrolnet_union import MultiControlNetUnionModel
from PIL import Image

from bench.engine.pipelines import arguments
from deployments.engine.models.components import Components, size_of
from deployments.engine.models.loaded_model import LoadedModel, load_model
from deployments.engine.openvino.runtime import OpenVinoRuntime
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.inputs import Inputs
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import ModelSpec, PartSpec
from tests.deployments.engine.harness import Pixels, difference, request_for, run, use_sampler
from tests.deployments.engine.test_kinds import control, picture
from tests.deployments.engine.tiny_xl import save_tiny_xl, tiny_union_controlnet

CPU = torch.device("cpu")
MODES = {"canny": 3, "depth": 1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("union")
    tiny_union_controlnet(71).save_pretrained(root / "union", safe_serialization=True)
    return save_tiny_xl(root / "xl"), root / "union"


def spec_of(folders: tuple[Path, Path], modes: dict[str, int]) -> ModelSpec:
    nets = {name: PartSpec(str(folders[1]), mode=mode) for name, mode in modes.items()}
    return ModelSpec("xl", str(folders[0]), controlnets=nets)


@pytest.fixture(scope="module")
def model(folders: tuple[Path, Path]) -> LoadedModel:
    return load_model(spec_of(folders, MODES), CPU, torch.float32)


def requests_for(model: LoadedModel) -> list[Request]:
    return [
        request_for(model, "canny", Inputs(hints=(picture(3),)), controls=(control("canny", scale=0.7),)),
        request_for(model, "depth", Inputs(hints=(picture(4),)), controls=(control("depth", end=0.6),)),
        request_for(
            model,
            "both",
            Inputs(hints=(picture(3), picture(4))),
            controls=(control("canny", scale=0.5), control("depth", scale=1.2)),
        ),
        request_for(model, "guessing", Inputs(hints=(picture(3),)), controls=(control("canny"),), guess_mode=True),
        request_for(model, "none"),
    ]


def reference(folders: tuple[Path, Path], request: Request) -> Pixels:
    controls = request.params.controls
    net: Any = ControlNetUnionModel.from_pretrained(folders[1])
    if len(controls) > 1:
        net = MultiControlNetUnionModel([net] * len(controls))
    pipeline = StableDiffusionXLControlNetUnionPipeline.from_pretrained(
        folders[0], controlnet=net, add_watermarker=False
    )
    use_sampler(pipeline, request.params.sampler)
    pipeline.set_progress_bar_config(disable=True)
    given = arguments([request])
    del given["image"]
    hints = [Image.fromarray(hint) for hint in request.inputs.hints]
    given |= {"control_image": hints, "control_mode": [MODES[each.type] for each in controls]}
    return np.asarray(pipeline(**given).images[0]).astype(np.int16)


def test_each_kind_beside_the_others_is_the_picture_of_diffusers(
    model: LoadedModel, folders: tuple[Path, Path]
) -> None:
    asked = requests_for(model)
    tape, _ = run(model, asked)
    # In guess mode diffusers' own pipeline fails: it gives its network twice as many kinds as latents.
    for request in [each for each in asked if each.params.controls and not each.params.guess_mode]:
        assert difference(tape.images(request.id)[0], reference(folders, request)) <= 1, request.id
    assert difference(tape.images("canny")[0], tape.images("none")[0]) > 4


def test_its_kinds_share_their_weights(model: LoadedModel, folders: tuple[Path, Path]) -> None:
    alone = load_model(spec_of(folders, {"canny": 3}), CPU, torch.float32)
    assert model.bytes - alone.bytes < 1000
    canny, depth = (model.controlnets[name] for name in MODES)
    assert size_of(*canny.networks, *depth.networks) < size_of(*canny.networks) + 1000


def test_on_openvino_its_pictures_are_the_same(model: LoadedModel, folders: tuple[Path, Path]) -> None:
    parts = Components(CPU, torch.float32, openvino=OpenVinoRuntime(threads=1))
    converted = load_model(spec_of(folders, MODES), CPU, torch.float32, parts)
    asked = requests_for(model)
    wanted, made = run(model, asked)[0], run(converted, asked)[0]
    for request in asked:
        assert difference(made.images(request.id)[0], wanted.images(request.id)[0]) <= 1, request.id
    assert converted.backend == "openvino"


def test_a_kind_that_it_does_not_know_is_refused(folders: tuple[Path, Path]) -> None:
    with pytest.raises(ModelLoadError, match="its `mode` is 4, and the network knows 4"):
        load_model(spec_of(folders, {"pose": 4}), CPU, torch.float32)


def test_without_a_mode_it_is_refused_as_what_it_is(folders: tuple[Path, Path]) -> None:
    spec = ModelSpec("xl", str(folders[0]), controlnets={"canny": str(folders[1])})
    with pytest.raises(ModelLoadError, match="is a ControlNetUnionModel by its config"):
        load_model(spec, CPU, torch.float32)
