"""The answers of text-to-image: JSON, bytes, and the headers with them."""

import asyncio
import base64
import io

import httpx
import pytest
from PIL import Image

from deployments.engine.protocol.errors import EngineStopped, GenerationFailed, NumericalFailure, Overloaded
from tests.serve_app.fakes import PATH, FakeBackend, failing, refusing

CUP = {"prompt": "a red cup", "seed": 42, "num_inference_steps": 20}

GUIDE = {
    "prompt": "Professional advertisement for premium coffee",
    "negative_prompt": "blurry, low quality",
    "width": 512,
    "height": 512,
    "num_images": 1,
    "guidance_scale": 7.5,
    "num_inference_steps": 50,
    "seed": 42,
    "model_name": "maker/tiny",
}


async def test_the_guides_body_is_answered_as_promised(client: httpx.AsyncClient) -> None:
    response = await client.post(PATH, json=GUIDE)
    answer = response.json()
    assert response.status_code == 200
    assert list(answer) == ["id", "model", "images", "effective_prompt", "parameters", "timings", "cached"]
    (image,) = answer["images"]
    assert {name: image[name] for name in image if name != "data"} == {
        "index": 0,
        "seed": 42,
        "format": "png",
        "width": 512,
        "height": 512,
    }
    assert Image.open(io.BytesIO(base64.b64decode(image["data"]))).size == (512, 512)
    assert answer["model"] == "tiny"
    assert answer["cached"] is False
    assert answer["timings"] == {"queued_ms": 1, "encode_ms": 2, "denoise_ms": 30, "decode_ms": 4, "total_ms": 37}
    assert answer["parameters"] == {
        **GUIDE,
        "model_name": "tiny",
        "style_preset": None,
        "sampler": "ddim",
        "clip_skip": 0,
        "output_format": "png",
    }
    assert "denoise;dur=30.0" in response.headers["server-timing"]


async def test_the_answers_parameters_can_be_posted_again(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    first = await client.post(PATH, json={"prompt": "a cup", "style_preset": "vintage"})
    second = await client.post(PATH, json=first.json()["parameters"])
    assert second.json()["parameters"] == first.json()["parameters"]
    assert backend.asked[0].params == backend.asked[1].params


async def test_image_i_has_seed_plus_i(client: httpx.AsyncClient) -> None:
    answer = (await client.post(PATH, json={**CUP, "num_images": 3})).json()
    assert [(image["index"], image["seed"]) for image in answer["images"]] == [(0, 42), (1, 43), (2, 44)]


@pytest.mark.parametrize("name", ["png", "webp", "jpeg"])
async def test_accepting_an_image_type_gives_the_file(client: httpx.AsyncClient, name: str) -> None:
    response = await client.post(PATH, json={**CUP, "output_format": "png"}, headers={"Accept": f"image/{name}"})
    assert response.headers["content-type"] == f"image/{name}"
    assert Image.open(io.BytesIO(response.content)).format == name.upper()
    assert (response.headers["x-seed"], response.headers["x-model"]) == ("42", "tiny")


async def test_any_image_type_will_do_means_the_one_asked_for(client: httpx.AsyncClient) -> None:
    response = await client.post(PATH, json={**CUP, "output_format": "webp"}, headers={"Accept": "image/*"})
    assert response.headers["content-type"] == "image/webp"


async def test_bytes_of_several_images_are_not_acceptable(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    response = await client.post(PATH, json={**CUP, "num_images": 2}, headers={"Accept": "image/png"})
    assert response.status_code == 406
    assert "application/json" in response.json()["detail"]
    assert not backend.asked


async def test_images_that_fail_are_told_beside_those_that_do_not(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.script = failing(NumericalFailure("the network's output was not finite"), 1)
    answer = (await client.post(PATH, json={**CUP, "num_images": 3})).json()
    assert [image["index"] for image in answer["images"]] == [0, 2]
    assert answer["failures"] == [
        {
            "index": 1,
            "status": "failed",
            "code": "numerical_failure",
            "message": "the network's output was not finite",
            "retryable": False,
        }
    ]


async def test_when_all_images_fail_the_answer_is_the_first_failure(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.script = failing(GenerationFailed("it could not be decoded"), 0, 1)
    response = await client.post(PATH, json={**CUP, "num_images": 2})
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "generation_failed"


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream", "image/png"])
@pytest.mark.parametrize(
    ("error", "code"), [(Overloaded("the queue is full"), "overloaded"), (EngineStopped("gone"), "engine_stopped")]
)
async def test_a_refusal_is_503_and_says_when_to_come_back_whatever_is_accepted(
    client: httpx.AsyncClient, backend: FakeBackend, accept: str, error: Exception, code: str
) -> None:
    backend.script = refusing(error)
    response = await client.post(PATH, json=CUP, headers={"Accept": accept})
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
    assert response.json()["error"]["code"] == code
    assert response.json()["retryable"] is True


async def test_previews_are_asked_for_in_streams_only(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    await client.post(PATH, json=CUP, params={"previews": 3})
    await client.post(PATH, json=CUP, params={"previews": 3}, headers={"Accept": "text/event-stream"})
    assert [request.previews for request in backend.asked] == [0, 3]


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream", "image/png"])
async def test_callers_with_one_request_id_do_not_meet_in_the_engine(
    client: httpx.AsyncClient, backend: FakeBackend, accept: str
) -> None:
    """The engine refuses an id that is running, and aborts by it: a caller must not be able to choose it."""
    headers = {"x-request-id": "same", "Accept": accept}
    answers = await asyncio.gather(*(client.post(PATH, json=CUP, headers=headers) for _ in range(3)))
    assert [answer.headers["x-request-id"] for answer in answers] == ["same"] * 3
    assert len({request.id for request in backend.asked} - {"same"}) == 3
