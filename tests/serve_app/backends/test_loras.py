"""A LoRA that lies in the folder changes the pictures of the requests that name it, as diffusers would."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.spec import ModelSpec
from deployments.loras.catalogue import LoraCatalogue
from serve_app.service import DiffusionService
from tests.deployments.engine.lora.formats import LOCON, write_kohya
from tests.deployments.engine.tiny import save_tiny_checkpoint
from tests.deployments.loras.files import write_lora

PROMPT = "a red cup"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


def params_of(**more: object) -> GenerationParams:
    asked = {"prompt": PROMPT, "num_inference_steps": 6, "seed": 7, "width": 64, "height": 64, **more}
    return GenerationParams.model_validate(asked)


async def test_a_request_with_a_lora_gives_the_picture_of_diffusers(checkpoint: Path, tmp_path: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    write_kohya(
        tmp_path / "coffee.safetensors", {"lora_unet_": pipeline.unet, "lora_te_": pipeline.text_encoder}, LOCON
    )
    spec = ModelSpec("tiny", str(checkpoint))
    asked = params_of(loras=[{"name": "coffee", "scale": 0.5}])
    catalogue = LoraCatalogue(folder=tmp_path)
    async with DiffusionService(models=[spec], device="cpu", loras=catalogue) as service:
        (plain,) = await service.generate_text_to_image(params_of())
        (changed,) = await service.generate_text_to_image(asked)
        write_lora(tmp_path / "other.safetensors", width=768)
        with pytest.raises(InvalidParameter, match="Stable Diffusion 1"):
            await service.generate_text_to_image(params_of(loras=[{"name": "other"}]))
    pipeline.load_lora_weights(tmp_path, weight_name="coffee.safetensors", adapter_name="coffee")
    pipeline.set_adapters("coffee", 0.5)
    (wanted,) = pipeline(
        PROMPT, width=64, height=64, num_inference_steps=6, generator=torch.Generator().manual_seed(7)
    ).images
    pixels = [np.asarray(picture, np.int16) for picture in (changed, wanted, plain)]
    assert np.abs(pixels[0] - pixels[1]).max() <= 1
    assert np.abs(pixels[2] - pixels[1]).max() > 20
