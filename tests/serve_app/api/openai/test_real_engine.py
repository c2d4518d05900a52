"""OpenAI's client over HTTP to a real engine with a tiny checkpoint: the same service as the native endpoints'."""

import asyncio
import base64
import io
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from openai import OpenAI
from PIL import Image

from deployments.engine.protocol.spec import ModelSpec
from serve_app.api.application import create_api
from serve_app.service import DiffusionService
from tests.deployments.engine.tiny import save_tiny_checkpoint, save_tiny_controlnet
from tests.serve_app.servers import http_server

CUP: dict[str, Any] = {"prompt": "a red cup"}
QUICK: dict[str, Any] = {"seed": 7, "num_inference_steps": 4}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("tiny")
    canny = save_tiny_controlnet(folder / "canny", seed=9)
    spec = ModelSpec("tiny", str(save_tiny_checkpoint(folder / "model")), controlnets={"canny": str(canny)})
    service = DiffusionService(models=[spec], device="cpu", dtype="float32")
    with http_server(create_api(service)) as url:
        yield url
    asyncio.run(service.close())


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=120) as client:
        yield client


def pixels(data: bytes) -> Any:
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def decoded(b64_json: str | None) -> bytes:
    assert b64_json is not None
    return base64.b64decode(b64_json)


def test_the_image_is_the_one_that_the_native_endpoint_makes(client: OpenAI, url: str) -> None:
    made = client.images.generate(**CUP, model="dall-e-3", extra_body=QUICK)
    native = httpx.post(
        f"{url}/ads/v2/diffusion/text-to-image",
        json=CUP | QUICK,
        headers={"Accept": "image/png", "Cache-Control": "no-store"},
        timeout=120,
    )
    assert made.data is not None
    assert np.abs(pixels(decoded(made.data[0].b64_json)) - pixels(native.content)).max() <= 1
    assert made.to_dict()["model"] == native.headers["x-model"] == "tiny"


def test_partial_images_come_before_the_image(client: OpenAI) -> None:
    with client.images.generate(**CUP, stream=True, partial_images=2, extra_body=QUICK | {"seed": 8}) as stream:
        events = list(stream)
    assert [event.type.rpartition(".")[2] for event in events] == ["partial_image", "partial_image", "completed"]
    assert all(pixels(decoded(event.b64_json)).size for event in events)


def test_an_edit_keeps_what_the_mask_keeps(client: OpenAI) -> None:
    before = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    mask = np.full((64, 64, 4), 255, dtype=np.uint8)
    mask[:, :32, 3] = 0
    files = []
    for array in (before, mask):
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "PNG")
        files.append(buffer.getvalue())
    made = client.images.edit(image=files[0], mask=files[1], **CUP, extra_body=QUICK)
    assert made.data is not None
    after = pixels(decoded(made.data[0].b64_json))
    assert (after[:, 32:] == before[:, 32:]).all()
    assert (after[:, :32] != before[:, :32]).any()
    opaque = io.BytesIO()
    Image.new("L", (64, 64), 255).save(opaque, "PNG")
    with pytest.raises(Exception, match="not transparent anywhere") as caught:
        client.images.edit(image=files[0], mask=opaque.getvalue(), **CUP, extra_body=QUICK)
    assert getattr(caught.value, "param", None) == "mask"


def test_a_control_makes_another_image_of_the_same_seed(client: OpenAI) -> None:
    hint = io.BytesIO()
    Image.new("RGB", (64, 64), "white").save(hint, "PNG")
    steered = client.images.edit(
        image=hint.getvalue(), **CUP, extra_body=QUICK | {"controls": [{"type": "canny", "scale": 1}]}
    )
    free = client.images.generate(**CUP, extra_body=QUICK)
    assert steered.data is not None
    assert free.data is not None
    assert np.abs(pixels(decoded(steered.data[0].b64_json)) - pixels(decoded(free.data[0].b64_json))).max() > 8
