"""The guide's calls, in Python and over HTTP, on the demo family: not only answered, but with the right pictures."""

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
from PIL import Image, ImageDraw

from deployments.training.demo.judging.judge import Verdict, judge
from deployments.training.demo.judging.judge_controls import depth_correlation, edge_f1, region_iou
from deployments.training.demo.judging.judge_pose import joints_right
from deployments.training.demo.world.figure import Limb, Pose
from deployments.training.demo.world.hints import depth_hint, pose_hint, segmentation_hint
from deployments.training.demo.world.tableau import Person, Tableau, Thing, draw_tableau
from deployments.training.demo.world.world import Scene, draw
from serve_app import DiffusionService, GenerationParams
from serve_app.api.application import create_api
from tests.serve_app.fakes import http

SD15 = "runwayml/stable-diffusion-v1-5"
SD21 = "stabilityai/stable-diffusion-2-1"
INPAINTING = "runwayml/stable-diffusion-inpainting"
STEPS = 16
SIZE = 256

pytestmark = [pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]

ADVERT = Scene("cup", "red", "blue")
DEPTHS = Tableau("red", "white", (Thing("cup", (0.3, 0.35), 0.26, 0.35), Thing("cup", (0.65, 0.65), 0.42, 1.0)))
SHELF = Tableau("red", "cyan", (Thing("bottle", (0.5, 0.55), 0.5),), horizon=0.65)
DANCER = Person(Pose((Limb(110, 30), Limb(60, -20), Limb(10, 0), Limb(30, -20))), (0.5, 0.08), 0.8)
DANCE = Tableau("purple", "yellow", person=DANCER)


def params(prompt: str, **more: Any) -> GenerationParams:
    given = {"prompt": prompt, "seed": 7, "num_inference_steps": STEPS, "width": SIZE, "height": SIZE} | more
    return GenerationParams.model_validate(given)


def pixels(picture: Image.Image) -> Any:
    return np.asarray(picture.convert("RGB"))


def seen(picture: Image.Image) -> Verdict:
    verdict = judge(pixels(picture))
    assert verdict is not None
    return verdict


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service() -> AsyncIterator[DiffusionService]:
    async with DiffusionService(device="cpu", dtype="float32") as service:
        yield service


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(service: DiffusionService) -> AsyncIterator[httpx.AsyncClient]:
    async with http(create_api(service)) as client:
        yield client


async def test_a_style_preset_is_a_look(service: DiffusionService) -> None:
    presets = ("professional", "lifestyle", "luxury", "minimalist", "vintage")
    calls = [
        service.generate_text_to_image(params("a red cup on a blue background", style_preset=preset))
        for preset in presets
    ]
    verdicts = [seen(images[0]) for images in await asyncio.gather(*calls)]
    assert sum(verdict.style == preset for verdict, preset in zip(verdicts, presets, strict=True)) >= 4
    assert sum((v.product, v.colour, v.background) == ("cup", "red", "blue") for v in verdicts) >= 4


async def test_each_model_name_of_the_guide_is_a_member_of_the_family(service: DiffusionService) -> None:
    prompt = "a red cup on a blue background"
    calls = [service.generate(params(prompt, guidance_scale=5, model_name=name)) for name in (SD15, SD21)]
    results = await asyncio.gather(*calls)
    assert [result.model for result in results] == ["demo-sd", "demo-sd21"]
    for result in results:
        verdict = seen(Image.open(io.BytesIO(result.images[0].data)))
        assert (verdict.product, verdict.colour, verdict.background) == ("cup", "red", "blue")


async def test_styles_over_one_image_keep_its_product(service: DiffusionService) -> None:
    init_image = Image.fromarray(draw(ADVERT, SIZE))
    styles = {"modern": "modern, contemporary, sleek design", "minimalist": "minimalist, clean, simple"}
    for style in styles.values():
        prompt = params(f"a red cup on a blue background, {style}", strength=0.7)
        (styled,) = await service.generate_image_to_image(init_image=init_image, params=prompt)
        verdict = seen(styled)
        assert (verdict.product, verdict.colour, verdict.background) == ("cup", "red", "blue")
        assert np.abs(pixels(styled).astype(int) - pixels(init_image)).max() > 40


async def test_the_named_product_appears_in_the_callers_own_mask(service: DiffusionService) -> None:
    image = Image.fromarray(draw(ADVERT, SIZE))
    mask = Image.new("L", image.size, 0)
    ImageDraw.Draw(mask).rectangle([50, 50, 205, 205], fill=255)
    # Strong guidance makes new colours stronger than the old ones around them, and the judge sees the seam.
    star = params("a yellow star on a blue background", guidance_scale=5)
    call = service.inpaint_image(image=image, mask=mask, params=star)
    named = service.inpaint_image(image=image, mask=mask, params=star, model_name=INPAINTING)
    (inpainted,), (same,) = await asyncio.gather(call, named)
    assert (seen(inpainted).product, seen(inpainted).colour) == ("star", "yellow")
    outside = np.asarray(mask) == 0
    assert (pixels(inpainted)[outside] == pixels(image)[outside]).all()
    # Who names no model gets the one that is made for inpainting.
    assert np.abs(pixels(inpainted).astype(int) - pixels(same)).max() <= 1


async def test_canny_control_follows_the_edges(service: DiffusionService) -> None:
    control_image = Image.fromarray(draw(Scene("shoe", "green", "white"), SIZE))
    canny_image = service.image_processor.apply_canny_edge_detection(
        control_image, low_threshold=100, high_threshold=200
    )
    (controlled,) = await service.generate_with_controlnet(
        control_image=canny_image,
        params=params("a purple shoe on a yellow background", guidance_scale=3),
        controlnet_type="canny",
    )
    assert edge_f1(pixels(controlled), pixels(canny_image)) > 0.7
    assert (seen(controlled).colour, seen(controlled).background) == ("purple", "yellow")


async def test_depth_control_follows_the_depth(service: DiffusionService) -> None:
    control_image = Image.fromarray(draw_tableau(DEPTHS, SIZE))
    depth_image = service.image_processor.apply_depth_estimation(control_image)
    assert np.corrcoef(pixels(depth_image)[..., 0].ravel(), depth_hint(DEPTHS, SIZE)[..., 0].ravel())[0, 1] > 0.9
    (controlled,) = await service.generate_with_controlnet(
        control_image=depth_image, params=params("a green cup on a white background"), controlnet_type="depth"
    )
    assert depth_correlation(pixels(controlled), depth_hint(DEPTHS, SIZE)) > 0.7


async def test_pose_and_regions_control_from_a_photo(service: DiffusionService) -> None:
    dancer, shelf = (Image.fromarray(draw_tableau(tableau, SIZE)) for tableau in (DANCE, SHELF))
    posed = service.generate_with_controlnet(
        dancer, params("a red person on a white background"), controlnet_type="pose", preprocess=True
    )
    laid = service.generate_with_controlnet(
        shelf, params("a blue bottle on a yellow background"), controlnet_type="segmentation", preprocess=True
    )
    (posed_picture,), (laid_picture,) = await asyncio.gather(posed, laid)
    assert joints_right(pixels(posed_picture), DANCER.joints) > 0.7
    assert region_iou(pixels(laid_picture), segmentation_hint(SHELF, SIZE)) > 0.7


async def test_a_skeleton_that_the_caller_draws_is_followed(service: DiffusionService) -> None:
    skeleton = Image.fromarray(pose_hint(DANCER, SIZE))
    (posed,) = await service.generate_with_controlnet(
        skeleton, params("a green person on a pink background"), controlnet_type="pose"
    )
    assert joints_right(pixels(posed), DANCER.joints) > 0.7


async def test_the_batch_loop_the_gathered_variations_and_their_statistics(service: DiffusionService) -> None:
    before = await service.get_generation_stats()
    batch_results = []
    for style in ("modern", "luxury", "minimalist"):
        batch_results.extend(await service.generate_text_to_image(params("a coffee cup", style_preset=style)))
    variations = ("with warm lighting", "with cool lighting", "with natural lighting", "with dramatic lighting")
    all_variations = await asyncio.gather(
        *(
            service.generate_text_to_image(params(f"a coffee cup {variation}", seed=index * 100))
            for index, variation in enumerate(variations)
        )
    )
    after = await service.get_generation_stats()
    assert len(batch_results) == 3
    assert [len(images) for images in all_variations] == [1, 1, 1, 1]
    assert after["images"] - before["images"] == 7
    # Of the family, those that have been asked for.
    assert 1 <= after["loaded_models"] <= 3


async def post(client: httpx.AsyncClient, door: str, fields: dict[str, Any], **files: bytes) -> Image.Image:
    """The guide's form: its fields as one JSON part, and the files beside it."""
    told = fields | {"seed": 7, "num_inference_steps": STEPS}
    answer = await client.post(
        f"/ads/v2/diffusion/{door}",
        data={"params": json.dumps(told)},
        files={name: data for name, data in files.items()},
    )
    assert answer.status_code == 200, answer.text
    (image,) = answer.json()["images"]
    return Image.open(io.BytesIO(base64.b64decode(image["data"])))


def file_of(picture: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


async def test_the_guides_forms_give_the_right_pictures(client: httpx.AsyncClient) -> None:
    plain = {"negative_prompt": "blurry, distorted", "width": SIZE, "height": SIZE}
    advert = file_of(draw(ADVERT, SIZE))
    changed, painted, led = await asyncio.gather(
        post(
            client,
            "image-to-image",
            plain | {"prompt": "a red cup on a blue background, vintage", "guidance_scale": 7.5, "strength": 0.8},
            init_image=advert,
        ),
        post(
            client,
            "inpaint",
            plain | {"prompt": "a white heart on a blue background", "mask_type": "center"},
            image=advert,
        ),
        post(
            client,
            "controlnet",
            plain | {"prompt": "a green cup on a white background", "controlnet_type": "canny", "preprocess": True},
            control_image=advert,
        ),
    )
    assert (seen(changed).product, seen(changed).colour) == ("cup", "red")
    assert (seen(painted).product, seen(painted).colour) == ("heart", "white")
    assert (seen(led).product, seen(led).colour, seen(led).background) == ("cup", "green", "white")


async def test_health_counts_what_has_been_asked_for_of_the_family(
    service: DiffusionService, client: httpx.AsyncClient
) -> None:
    for model in (SD15, SD21):
        await service.generate_text_to_image(params("a red cup on a blue background", model_name=model))
    health = (await client.get("/ads/v2/diffusion/health")).json()
    assert health["status"] == "healthy"
    assert 2 <= health["loaded_models"] <= 3
