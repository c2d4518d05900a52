"""The guide's snippets that take pictures, in a plain process, on a tiny checkpoint of real networks."""

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from deployments.annotators.spec import DepthSpec
from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.spec import PartSpec
from serve_app import DiffusionService, GenerationParams, ImageProcessor, ModelSpec

GUIDES_NAME = "runwayml/stable-diffusion-v1-5"
GUIDES_INPAINTING = "runwayml/stable-diffusion-inpainting"


def params(prompt: str, **more: object) -> GenerationParams:
    return GenerationParams.model_validate({"prompt": prompt, "num_inference_steps": 6, "seed": 3} | more)


def photo(width: int = 96, height: int = 64) -> Image.Image:
    picture = Image.effect_mandelbrot((width, height), (-2, -1, 1, 1), 40).convert("RGB")
    ImageDraw.Draw(picture).rectangle((10, 10, 50, 40), fill="orange")
    return picture


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DiffusionService]:
    # Imported here: it needs torch, which the rest of this folder does without.
    from tests.deployments.annotators.tiny import save_tiny_depth
    from tests.deployments.engine.tiny import save_tiny_checkpoint, save_tiny_controlnet

    folder = tmp_path_factory.mktemp("tiny")
    names = ("canny", "depth", "normal")
    nets = {name: str(save_tiny_controlnet(folder / name, seed=i)) for i, name in enumerate(names)}
    depth = DepthSpec(PartSpec(str(save_tiny_depth(folder / "annotator"))), near_is_large=False)
    plain = ModelSpec("plain", str(save_tiny_checkpoint(folder / "plain")))
    mine = ModelSpec(name="mine", source=str(folder / "plain"), aliases=(GUIDES_NAME,), controlnets=nets)
    nine = ModelSpec(
        "nine",
        str(save_tiny_checkpoint(folder / "nine", in_channels=9)),
        aliases=("runwayml/stable-diffusion-inpainting",),
    )
    service = DiffusionService(
        models=[plain, mine, nine], device="cpu", dtype="float32", threads=1, annotators={"depth": depth}
    )
    yield service
    asyncio.run(service.close())


def test_style_transfer_over_one_image(service: DiffusionService) -> None:
    async def transfer() -> list[Image.Image]:
        styles = ("modern, contemporary", "vintage, retro", "luxury, premium", "minimalist, clean")
        calls = [service.generate_image_to_image(photo(), params(f"Transform into {style}")) for style in styles]
        return [images[0] for images in await asyncio.gather(*calls)]

    pictures = asyncio.run(transfer())
    assert {picture.size for picture in pictures} == {(80, 64)}
    assert len({picture.tobytes() for picture in pictures}) == 4


def test_less_strength_stays_nearer_to_the_picture(service: DiffusionService) -> None:
    small = service.image_processor.resize(photo(), 64, 64)

    def distance(strength: float) -> float:
        (made,) = asyncio.run(
            service.generate_image_to_image(small, params("x", strength=strength, num_inference_steps=20), GUIDES_NAME)
        )
        through = asyncio.run(
            service.generate_image_to_image(small, params("x", strength=0.05, num_inference_steps=20), GUIDES_NAME)
        )[0]
        return float(np.abs(np.asarray(made, dtype=float) - np.asarray(through)).mean())

    assert distance(0.3) < distance(1.0)


@pytest.mark.parametrize("model_name", [GUIDES_NAME, GUIDES_INPAINTING])
def test_a_mask_of_the_callers_own(model_name: str, service: DiffusionService) -> None:
    image = photo(64, 64)
    mask = Image.new("L", image.size, 0)
    ImageDraw.Draw(mask).rectangle((0, 0, image.width // 2, image.height // 2), fill=255)
    call = service.inpaint_image(image=image, mask=mask, params=params("Add brand logo"), model_name=model_name)
    (made,) = asyncio.run(call)
    kept = np.asarray(mask) == 0
    assert (np.asarray(made)[kept] == np.asarray(image)[kept]).all()
    assert (np.asarray(made)[~kept] != np.asarray(image)[~kept]).any()


def test_a_mask_by_name(service: DiffusionService) -> None:
    image = photo(128, 128)
    mask = service.image_processor.create_mask(image, mask_type="center")
    (made,) = asyncio.run(service.inpaint_image(image=image, mask=mask, params=params("a button", width=64, height=64)))
    assert made.size == (64, 64)
    assert np.asarray(made)[0].tolist() == np.asarray(service.image_processor.resize(image, 64, 64))[0].tolist()


def test_edges_control_and_pick_the_model_that_can(service: DiffusionService) -> None:
    canny = service.image_processor.apply_canny_edge_detection(photo(), low_threshold=100, high_threshold=200)
    prompt = params("Professional product advertisement", width=64, height=64)
    (one,) = asyncio.run(service.generate_with_controlnet(canny, prompt, controlnet_type="canny"))
    (same,) = asyncio.run(
        service.generate_with_controlnet(
            service.image_processor.resize(photo(), 64, 64), prompt, controlnet_type="canny", preprocess=True
        )
    )
    (other,) = asyncio.run(service.generate_with_controlnet(canny, prompt, controlnet_type="depth"))
    assert one.size == same.size == (64, 64)
    assert one.tobytes() != other.tobytes()


def test_depth_controls_as_a_hint_and_from_a_photo(service: DiffusionService) -> None:
    small = service.image_processor.resize(photo(), 64, 64)
    depth_image = service.image_processor.apply_depth_estimation(small)
    prompt = params("Create advertisement with proper depth and perspective", width=64, height=64)
    (one,) = asyncio.run(service.generate_with_controlnet(depth_image, prompt, controlnet_type="depth"))
    (same,) = asyncio.run(service.generate_with_controlnet(small, prompt, controlnet_type="depth", preprocess=True))
    (other,) = asyncio.run(service.generate_with_controlnet(small, prompt, controlnet_type="depth"))
    assert one.tobytes() == same.tobytes()
    assert one.tobytes() != other.tobytes()


@pytest.mark.parametrize(
    ("kind", "model", "preprocess", "field"),
    [
        ("pose", None, False, "controlnet_type"),
        ("canny", "nine", False, "controlnet_type"),
        ("normal", None, True, "preprocess"),
    ],
)
def test_a_control_that_cannot_be_is_refused(
    kind: str, model: str | None, preprocess: bool, field: str, service: DiffusionService
) -> None:
    call = service.generate_with_controlnet(photo(), params("x"), kind, model, preprocess=preprocess)
    with pytest.raises(InvalidParameter) as refused:
        asyncio.run(call)
    assert refused.value.field == field


def test_an_empty_mask_is_refused(service: DiffusionService) -> None:
    with pytest.raises(InvalidParameter) as refused:
        asyncio.run(service.inpaint_image(photo(), Image.new("L", photo().size, 0), params("x")))
    assert refused.value.field == "mask"


def test_pictures_load_from_wherever_they_are(tmp_path: Path) -> None:
    processor, path = ImageProcessor(), tmp_path / "photo.png"
    photo().save(path)
    data = path.read_bytes()
    text = base64.b64encode(data).decode()
    for source in (path, str(path), data, text, f"data:image/png;base64,{text}", photo().convert("RGBA")):
        assert processor.load(source).tobytes() == photo().tobytes()
    with pytest.raises(InvalidParameter):
        processor.load("no such file, and no base64")
    with pytest.raises(FileNotFoundError):
        processor.load(tmp_path / "missing.png")


def test_finishing_touches_do_what_they_say() -> None:
    processor, picture = ImageProcessor(), photo()
    before = np.asarray(picture, dtype=float)
    assert np.asarray(processor.adjust_contrast(picture, 1.5), dtype=float).std() > before.std()
    assert np.asarray(processor.adjust_contrast(picture, 0.0), dtype=float).std() < 1

    def sharpness(image: Image.Image) -> float:
        return float(np.abs(np.diff(np.asarray(image, dtype=float), axis=1)).mean())

    assert sharpness(processor.sharpen(picture, 1.0)) > sharpness(picture)
    assert sharpness(processor.stretch_contrast(picture)) > sharpness(picture)
    assert processor.resize(picture, 30, 50, "pad").size == (30, 50)
