"""Pictures encoded and decoded in tiles are those of diffusers' tiling, and no call sees more than a tile."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.engine.pipelines import arguments
from deployments.engine.conditioning.image_encoder import ImageEncoder, to_unit_pixels
from deployments.engine.models.loaded_model import load_model
from deployments.engine.protocol.inputs import Inputs
from deployments.engine.protocol.request import Bucket
from deployments.engine.protocol.spec import ModelSpec
from deployments.engine.scheduling.memory_plan import MemoryPlan
from deployments.engine.vae_tiles import decode_in_tiles, tile_side
from tests.deployments.engine.harness import difference, load_reference, make_reference, request_for, run
from tests.deployments.engine.tiny import FACTOR, tiny_vae

CPU = torch.device("cpu")


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 12), (20, 8), (13, 27), (14, 14)])
@torch.inference_mode()
def test_tiles_are_those_of_diffusers(height: int, width: int) -> None:
    vae = tiny_vae()
    vae.enable_tiling()
    latents = torch.randn((2, 4, height, width), generator=torch.Generator().manual_seed(height))
    wanted = vae.decode(latents, return_dict=False)[0]
    vae.disable_tiling()
    seen: list[int] = []

    def decode(tile: Tensor) -> Tensor:
        seen.append(max(tile.shape[2:]))
        made: Tensor = vae.decode(tile, return_dict=False)[0]
        return made

    made = decode_in_tiles(decode, latents, tile_side(vae), FACTOR)
    assert made.shape == (2, 3, height * FACTOR, width * FACTOR)
    torch.testing.assert_close(made, wanted, atol=1e-5, rtol=0)
    assert max(seen) <= tile_side(vae) // FACTOR


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 96), (160, 64), (104, 216), (112, 112)])
@torch.inference_mode()
def test_images_are_encoded_in_the_tiles_of_diffusers(height: int, width: int) -> None:
    vae = tiny_vae()
    vae.enable_tiling()
    image = np.random.default_rng(height).integers(0, 255, (height, width, 3), dtype=np.uint8)
    wanted = vae.encode(to_unit_pixels(image)[None] * 2 - 1).latent_dist
    vae.disable_tiling()
    seen: list[int] = []
    encode = vae.encode

    def record(pixels: Tensor) -> Any:
        seen.append(max(pixels.shape[2:]))
        return encode(pixels)

    vae.encode = record
    found = ImageEncoder(vae, CPU, torch.float32, tile=tile_side(vae)).encode(image)
    scale = vae.config.scaling_factor
    torch.testing.assert_close(found.mean / scale, wanted.mean[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.deviation / scale, wanted.std[0], atol=1e-5, rtol=0)
    assert max(seen) <= tile_side(vae)


def test_a_model_with_tiling_begins_from_the_large_picture_that_diffusers_begins_from(tiny_checkpoint: Path) -> None:
    model = load_model(ModelSpec("tiles", str(tiny_checkpoint), vae_tiling=True), CPU, torch.float32)
    image = np.random.default_rng(0).integers(0, 255, (80, 112, 3), dtype=np.uint8)
    request = request_for(model, "large", Inputs(image=image), width=112, height=80, strength=0.5)
    tape, _ = run(model, [request])
    pipeline = load_reference(tiny_checkpoint, model, request)
    pipeline.vae.enable_tiling()
    wanted = pipeline(**arguments([request], 0)).images[0]
    assert difference(tape.images("large")[0], np.asarray(wanted).astype(np.int16)) <= 1


def test_a_model_with_tiling_makes_the_large_picture_of_diffusers_with_it(tiny_checkpoint: Path) -> None:
    model = load_model(ModelSpec("tiles", str(tiny_checkpoint), vae_tiling=True), CPU, torch.float32)
    assert model.tile == 64
    large, small = request_for(model, "large", width=112, height=80), request_for(model, "small")
    tape, _ = run(model, [large, small])
    pipeline = load_reference(tiny_checkpoint, model, large)
    pipeline.vae.enable_tiling()
    wanted = pipeline(**arguments([large])).images[0]
    assert difference(tape.images("large")[0], np.asarray(wanted).astype(np.int16)) <= 1
    assert difference(tape.images("large")[0], make_reference(tiny_checkpoint, model, large)) > 1
    assert difference(tape.images("small")[0], make_reference(tiny_checkpoint, model, small)) <= 1


def test_the_plan_expects_of_a_large_picture_what_a_tile_takes() -> None:
    plan = MemoryPlan(None, (1, 2, 4))
    plan.record_peak("decode", Bucket("m", 64, 64), 1, 1000)
    plan.record_peak("encode", Bucket("m", 64, 64), 1, 800)
    assert plan.predict("decode", Bucket("m", 128, 128), 1) == 4000
    assert plan.predict("encode", Bucket("m", 128, 128), 1) == 3200
    plan.set_tiles({"m": 64 * 64})
    assert plan.predict("decode", Bucket("m", 128, 128), 1) == 1000
    assert plan.predict("encode", Bucket("m", 128, 128), 1) == 800
    assert plan.predict("decode", Bucket("m", 32, 64), 1) == 500
