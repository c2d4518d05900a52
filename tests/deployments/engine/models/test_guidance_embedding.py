"""UNets that take the guidance scale as input: one row of a call, and diffusers' images."""

import json
import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from deployments.engine.models.guidance_embedding import embed_guidance
from deployments.engine.models.loaded_model import LoadedModel, load_model
from deployments.engine.protocol.inputs import Inputs
from deployments.engine.protocol.spec import INDEX, ModelSpec
from tests.deployments.engine.harness import difference, reference_image, request_for, run
from tests.deployments.engine.tiny import save_tiny_checkpoint

WIDTH: Final = 16
PICTURE: Final = np.kron(np.random.default_rng(1).uniform(0, 255, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
MASK: Final = np.repeat(np.array([[255, 0]], dtype=np.uint8), 64, axis=0).repeat(32, axis=1)
CONTROL: Final = {"controls": ({"type": "canny"},)}

KINDS: Final[dict[str, tuple[Inputs, dict[str, Any]]]] = {
    "text": (Inputs(), {"guidance_scale": 7.5}),
    "text, other guidance": (Inputs(), {"guidance_scale": 2.0}),
    "text, no guidance": (Inputs(), {"guidance_scale": 0.5}),
    "image": (Inputs(image=PICTURE), {"strength": 0.6}),
    "inpaint": (Inputs(image=PICTURE, mask=MASK), {"strength": 1.0}),
    "inpaint, in part": (Inputs(image=PICTURE, mask=MASK), {"strength": 0.7}),
    "control": (Inputs(hints=(PICTURE,)), CONTROL),
    "control, image": (Inputs(image=PICTURE, hints=(PICTURE,)), {"strength": 0.6} | CONTROL),
    "control, inpaint": (Inputs(image=PICTURE, mask=MASK, hints=(PICTURE,)), {"strength": 0.8} | CONTROL),
}


@pytest.fixture(scope="module")
def distil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A latent consistency model: its UNet is told the guidance scale, its scheduler is LCM's."""
    folder = save_tiny_checkpoint(tmp_path_factory.mktemp("distilled"))
    plain = UNet2DConditionModel.from_pretrained(folder / "unet")
    unet = UNet2DConditionModel.from_config({**plain.config, "time_cond_proj_dim": WIDTH})
    weight = torch.randn((16, WIDTH), generator=torch.Generator().manual_seed(3))
    unet.load_state_dict({**plain.state_dict(), "time_embedding.cond_proj.weight": weight})
    shutil.rmtree(folder / "unet")
    unet.save_pretrained(folder / "unet")
    scheduler = LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    scheduler.save_pretrained(folder / "scheduler")
    index = json.loads((folder / INDEX).read_text()) | {"scheduler": ["diffusers", "LCMScheduler"]}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def model(distil: Path, tiny_controlnets: dict[str, str]) -> LoadedModel:
    spec = ModelSpec("distilled", str(distil), controlnets={"canny": tiny_controlnets["canny"]})
    return load_model(spec, torch.device("cpu"), torch.float32)


def test_rows_of_any_guidance_and_kind_share_calls_and_are_the_pictures_of_diffusers(
    model: LoadedModel, distil: Path
) -> None:
    requests = [
        request_for(model, name, inputs, **({"num_inference_steps": 4, "seed": i} | asked))
        for i, (name, (inputs, asked)) in enumerate(KINDS.items())
    ]
    tape, engine = run(model, requests, max_rows=32)
    # Only beside a ControlNet and from a picture do diffusers' pipelines run the negative half.
    assert engine.tracker.total.unet_calls == 4
    assert engine.tracker.total.batch_sizes[len(KINDS) + 2] > 0
    far = {one.id: difference(tape.images(one.id)[0], reference_image(distil, model, one)) for one in requests}
    assert max(far.values()) <= 1, far


def test_guidance_shows_and_the_negative_prompt_does_not(model: LoadedModel) -> None:
    asked: dict[str, Any] = {"num_inference_steps": 3, "prompt": "a cup"}
    requests = [
        request_for(model, "7", **asked, guidance_scale=7.0),
        request_for(model, "2", **asked, guidance_scale=2.0),
        request_for(model, "7, negative", **asked, guidance_scale=7.0, negative_prompt="a cat"),
    ]
    tape, _ = run(model, requests)
    assert difference(tape.images("7")[0], tape.images("2")[0]) > 4
    assert difference(tape.images("7")[0], tape.images("7, negative")[0]) == 0


@pytest.mark.parametrize("width", [16, 17, 256])
@pytest.mark.parametrize("scale", [0.0, 1.0, 7.3])
def test_the_embedding_is_that_of_diffusers(scale: float, width: int) -> None:
    theirs = StableDiffusionPipeline.get_guidance_scale_embedding(None, torch.tensor([scale - 1]), width)[0]
    assert torch.equal(embed_guidance(scale, width), theirs)
