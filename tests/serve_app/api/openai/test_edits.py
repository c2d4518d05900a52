"""Edits over `/v1`: which picture is changed, which is a mask, and which are followed."""

import io
import json
from dataclasses import replace
from typing import Any

import httpx
import pytest
from PIL import Image

from deployments.annotators.catalogue import NO_NETWORKS, Annotators
from deployments.engine.protocol.settings import ReferenceSettings
from deployments.engine.protocol.spec import ModelSpec
from deployments.uploads.intake import decode_uploads
from serve_app.api.application import create_api
from serve_app.api.openai.fields import CLIENT_SIZES
from serve_app.generation.sizes import fit_to_model
from serve_app.service import DiffusionService
from tests.serve_app.fakes import ADAPTER, STYLED, TINY, FakeBackend, http

DOOR = "/v1/images/edits"
CUP = {"prompt": "a red cup"}


def png(colour: Any = "teal", size: tuple[int, int] = (64, 64), mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def mask_with_hole() -> bytes:
    """Opaque black, transparent in its left half."""
    mask = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 32, 64))
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    return buffer.getvalue()


PICTURE = png()
HINTS = [png("white"), png("gray")]


async def ask(client: httpx.AsyncClient, pictures: list[tuple[str, bytes]], **fields: Any) -> httpx.Response:
    # As the SDK sends bytes: neither name nor type says anything.
    files: list[Any] = [(name, ("upload", data, "application/octet-stream")) for name, data in pictures]
    # httpx makes a form of fields alone only when one of them looks like a file.
    return await client.post(DOOR, data=CUP | fields, files=files or [("seed", (None, b"1"))])


@pytest.mark.parametrize("name", ["image", "image[]"])
async def test_an_image_alone_is_changed(name: str, client: httpx.AsyncClient, backend: FakeBackend) -> None:
    answer = await ask(client, [(name, PICTURE)], strength="0.4", n="2", quality="low", size="auto")
    (request,) = backend.asked
    assert answer.status_code == 200
    assert request.uploads is not None
    assert (request.uploads.task, request.params.strength) == ("image-to-image", 0.4)
    assert (request.params.num_images, request.params.num_inference_steps) == (2, 15)
    assert len(answer.json()["data"]) == 2


async def test_where_the_mask_is_transparent_is_repainted(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    assert (await ask(client, [("image", PICTURE), ("mask", mask_with_hole())])).status_code == 200
    decoded = decode_uploads(backend.asked[0], Annotators(NO_NETWORKS, "cpu"))
    assert decoded.inputs.mask is not None
    assert (decoded.inputs.mask[:, :32] == 255).all()
    assert (decoded.inputs.mask[:, 32:] == 0).all()


async def test_a_mask_by_name_needs_no_file(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    assert (await ask(client, [("image", PICTURE)], mask_type="center")).status_code == 200
    assert backend.asked[0].uploads is not None
    assert backend.asked[0].uploads.task == "inpaint"


CONTROLS: dict[str, Any] = {"controls[][type]": ["canny", "depth"], "controls[][scale]": ["0.5", "1"]}


@pytest.mark.parametrize("count", [2, 3])
async def test_further_images_are_followed(count: int, client: httpx.AsyncClient, backend: FakeBackend) -> None:
    pictures = [("image[]", each) for each in [PICTURE, *HINTS][3 - count :]]
    assert (await ask(client, pictures, **CONTROLS)).status_code == 200
    (request,) = backend.asked
    assert request.uploads is not None
    assert request.uploads.hints == tuple(HINTS)
    assert request.uploads.image == (PICTURE if count == 3 else None)
    assert [(each.type, each.scale) for each in request.params.controls] == [("canny", 0.5), ("depth", 1.0)]


@pytest.mark.parametrize("controls", [0, 1])
async def test_images_after_those_for_controlnets_are_taken_after(controls: int) -> None:
    nets = {"canny": "nowhere"} if controls else {}
    backend = FakeBackend(models=(TINY, replace(STYLED, controlnets=nets)))
    fields: dict[str, Any] = {"reference[scale]": "0.5", "reference[weights][]": ["1", "0.25"]}
    fields |= {"controls[][type]": "canny"} if controls else {}
    pictures = [("image[]", each) for each in [PICTURE, *HINTS[:controls], *HINTS]]
    async with http(create_api(DiffusionService(backend))) as client:
        answer = await ask(client, pictures, **fields)
    assert answer.status_code == 200, answer.text
    (request,) = backend.asked
    assert request.uploads is not None
    assert (request.uploads.image, request.uploads.references) == (PICTURE, tuple(HINTS))
    assert (request.uploads.hints, request.uploads.task) == (tuple(HINTS[:controls]), "image-to-image")
    assert request.params.reference == ReferenceSettings(adapter="style", scale=0.5, weights=(1.0, 0.25))


async def test_a_model_without_an_ip_adapter_says_so_of_further_images(client: httpx.AsyncClient) -> None:
    answer = await ask(client, [("image[]", PICTURE)] * 2, model="tiny")
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "image")
    assert "IP-Adapter, and tiny has none" in error["message"]


async def test_a_reference_is_for_edits_with_several_images(client: httpx.AsyncClient) -> None:
    alone = await ask(client, [("image", PICTURE)], **{"reference[scale]": "1"})
    assert (alone.status_code, alone.json()["error"]["param"]) == (400, "image")
    made = await client.post("/v1/images/generations", json=CUP | {"reference": {"scale": 1}})
    assert (made.status_code, made.json()["error"]["param"]) == (400, "reference")


SMALL = replace(TINY, name="small", aliases=(), source="small", max_pixels=128 * 128, native_size=96)
LARGE = replace(TINY, name="large", aliases=(), source="large", max_pixels=2048 * 2048, native_size=512)
PAINTS = replace(SMALL, name="paints", source="paints", inpaints_only=True)
PAINTS_LARGE = replace(LARGE, name="paints-large", source="paints-large", inpaints_only=True)
LOOKS = replace(SMALL, name="looks", source="looks", ip_adapters={"style": ADAPTER})
LOOKS_LARGE = replace(LARGE, name="looks-large", source="large", ip_adapters={"style": ADAPTER})


@pytest.mark.parametrize("size", sorted(CLIENT_SIZES))
@pytest.mark.parametrize("more", ["nothing", "mask", "reference"])
@pytest.mark.parametrize(
    "models",
    [(LARGE, PAINTS, LOOKS), (SMALL, PAINTS_LARGE, LOOKS_LARGE), (LARGE, LOOKS_LARGE), (PAINTS_LARGE, SMALL, LOOKS)],
    ids=lambda models: ",".join(spec.name for spec in models),
)
async def test_a_clients_size_is_fitted_to_the_model_that_serves(
    models: tuple[ModelSpec, ...], more: str, size: tuple[int, int]
) -> None:
    backend = FakeBackend(models=models)
    pictures = [("image[]", PICTURE)]
    pictures += {"nothing": [], "mask": [("mask", mask_with_hole())], "reference": [("image[]", PICTURE)]}[more]
    async with http(create_api(DiffusionService(backend))) as client:
        answer = await ask(client, pictures, size=f"{size[0]}x{size[1]}")
    assert answer.status_code == 200, answer.text
    params = backend.asked[0].params
    served = next(spec for spec in models if spec.name == params.model_name)
    assert (params.width, params.height) == fit_to_model(*size, served)


async def test_lists_of_numbers_come_flattened(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    fields = {"guidance_interval[]": ["0.2", "0.8"]}
    assert (await ask(client, [("image", PICTURE)], **fields)).status_code == 200
    assert backend.asked[0].params.guidance_interval == (0.2, 0.8)


@pytest.mark.parametrize(
    ("pictures", "fields", "param"),
    [
        ([], {}, "image"),
        ([("image", b"")], {}, "image"),
        ([("image[]", PICTURE), ("image[]", PICTURE)], {}, "image"),
        ([("image", PICTURE)], CONTROLS, "image"),
        ([("image[]", each) for each in HINTS] + [("mask", mask_with_hole())], CONTROLS, "mask"),
        ([("image", PICTURE), ("mask", png(size=(32, 32)))], {}, "mask"),
        ([("image", PICTURE), ("mask", mask_with_hole())], {"mask_type": "center"}, "mask_type"),
        ([("image", PICTURE), ("markup", PICTURE)], {}, "markup"),
        ([("image", b"no picture")], {}, "image"),
        ([("image", PICTURE)], {"n": "two"}, "n"),
        ([("image", PICTURE)], {"n": ["1", "2"]}, "n"),
        ([("image", PICTURE)], {"stream": "maybe"}, "stream"),
        ([("image", PICTURE)], {"fit": "bend"}, "fit"),
        ([("image", PICTURE)], {"strength": "2"}, "strength"),
        ([("image", PICTURE)], {"input_fidelity": "high"}, "input_fidelity"),
        ([("image", PICTURE)], {"controls[][type]": ["canny", "depth"], "controls[][scale]": "1"}, "controls"),
        ([("image", PICTURE)], {"controls[][scale]": "1"}, "controls/0/type"),
        ([("image", PICTURE)], {"guidance_interval[]": ["0", "x"]}, "guidance_interval/1"),
        ([("image", PICTURE)], {"response_format": "url"}, "response_format"),
        ([("image[]", PICTURE)], {"controls[][type]": "tile"}, "controls"),
    ],
)
async def test_a_mistake_is_400_and_names_the_field(
    pictures: list[tuple[str, bytes]],
    fields: dict[str, Any],
    param: str,
    client: httpx.AsyncClient,
    backend: FakeBackend,
) -> None:
    answer = await ask(client, pictures, **fields)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert not backend.asked


async def test_all_fields_may_come_as_one_part(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    whole = {"prompt": "a cup", "n": 2, "size": "64x128", "stream": False, "controls": [{"type": "canny"}]}
    files = [("image", ("upload", PICTURE)), ("params", (None, json.dumps(whole).encode()))]
    assert (await client.post(DOOR, files=files)).status_code == 200
    params = backend.asked[0].params
    assert (params.num_images, params.height, params.controls[0].type) == (2, 128, "canny")


async def test_json_is_refused_for_its_type(client: httpx.AsyncClient) -> None:
    answer = await client.post(DOOR, json=CUP)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
