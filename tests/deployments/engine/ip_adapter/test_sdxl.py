"""Stable Diffusion XL with reference images: every kind equals diffusers' own pipeline for it."""

from pathlib import Path
from typing import Any, Final

import pytest
import torch
from diffusers import UNet2DConditionModel

from deployments.engine.models.loaded_model import LoadedModel, load_model
from deployments.engine.protocol.events import Failed, ImageFailed
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import IpAdapterSpec, ModelSpec
from tests.deployments.engine.harness import Tape, difference, request_for, run
from tests.deployments.engine.ip_adapter.test_references import REFERENCES, refer
from tests.deployments.engine.ip_adapter.tiny_ip_adapters import reference_with_images, save_ip_adapters
from tests.deployments.engine.test_kinds import KINDS
from tests.deployments.engine.tiny_xl import save_tiny_xl, tiny_xl_controlnet

ASKED: Final[dict[str, tuple[str, str, dict[str, Any]]]] = {
    "plain": ("", "plain", {}),
    "plus": ("", "plus", {"negative_prompt": "a red cup"}),
    "several of plus": ("", "three images of plus", {"guidance_scale": 1.0}),
    "for a while": ("", "for a while", {"sampler": "dpmpp_2m_karras"}),
    "image-to-image": ("image-to-image", "plus", {}),
    "inpaint": ("inpaint", "two images", {}),
    "controlnet": ("controlnet", "another", {}),
    "without": ("", "", {}),
    "controlnet without": ("controlnet", "", {}),
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_xl(tmp_path_factory.mktemp("referring_xl"))


@pytest.fixture(scope="session")
def adapters(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, IpAdapterSpec]:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    return save_ip_adapters(tmp_path_factory.mktemp("xl_ip_adapters"), unet)


@pytest.fixture(scope="session")
def model(folder: Path, adapters: dict[str, IpAdapterSpec], tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    net = tmp_path_factory.mktemp("xl_canny")
    tiny_xl_controlnet(61).save_pretrained(net, safe_serialization=True)
    spec = ModelSpec("xl", str(folder), controlnets={"canny": str(net)}, ip_adapters=adapters)
    return load_model(spec, torch.device("cpu"), torch.float32)


def asked_of(model: LoadedModel) -> list[Request]:
    asked = []
    for seed, (name, (kind, reference, more)) in enumerate(ASKED.items()):
        inputs, own = KINDS[kind] if kind else (request_for(model, name).inputs, {})
        request = request_for(model, name, inputs, **{"num_inference_steps": 5, "seed": seed} | own | more)
        asked.append(refer(request, reference) if reference in REFERENCES else request)
    return asked


@pytest.fixture(scope="session")
def crowd(model: LoadedModel) -> tuple[list[Request], Tape]:
    asked = asked_of(model)
    tape, _ = run(model, asked, max_rows=32)
    assert [each for request in asked for kind in (Failed, ImageFailed) for each in tape.of(request.id, kind)] == []
    return asked, tape


@pytest.mark.parametrize("kind", ASKED)
def test_each_kind_in_a_crowd_of_others_is_the_picture_of_diffusers(
    kind: str,
    crowd: tuple[list[Request], Tape],
    model: LoadedModel,
    folder: Path,
    adapters: dict[str, IpAdapterSpec],
) -> None:
    asked, tape = crowd
    request = next(each for each in asked if each.id == kind)
    reference = reference_with_images(folder, model, request, adapters)
    assert difference(tape.images(kind)[0], reference) <= 1
