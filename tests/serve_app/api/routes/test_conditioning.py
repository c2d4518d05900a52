"""What a model makes of a prompt and of a photo, over HTTP, without an image being made."""

from typing import Any

import httpx
import pytest

from serve_app.backends.protocol import BackendReport
from tests.serve_app.api.parsing.test_hostile import assert_problem
from tests.serve_app.api.parsing.test_hostile_forms import picture
from tests.serve_app.fakes import FakeBackend

TOKENS, HINT = "/ads/v2/diffusion/tokens", "/ads/v2/diffusion/hint"


def counted(tokens: int) -> dict[str, int]:
    return {"tokens": tokens, "chunks": max(1, -(-tokens // 75)), "max_tokens": 300, "max_chunks": 4}


async def test_both_prompts_are_counted_with_the_style_and_for_the_model_that_would_serve(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    body = {"prompt": "a red cup", "negative_prompt": "blur", "style_preset": "modern", "model_name": "other"}
    answer = await client.post(TOKENS, json=body)
    assert answer.json() == {"model": "other", "prompt": counted(7), "negative_prompt": counted(1)}
    # Counting is the point of it, so one that is too long is no mistake here.
    assert (await client.post(TOKENS, json={"prompt": "word " * 400})).json()["prompt"] == counted(400)
    assert not backend.asked


async def test_counting_refuses_as_generating_would(client: httpx.AsyncClient) -> None:
    assert_problem(await client.post(TOKENS, json={"prompt": 3}), 422, "wrong_type")
    assert_problem(await client.post(TOKENS, json={"prompt": "a", "model_name": "nope"}), 404, "model_not_found")


async def test_no_model_is_loaded_to_count(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.now = BackendReport()
    assert_problem(await client.post(TOKENS, json={"prompt": "a cup"}), 503, "engine_stopped")


async def test_a_hint_comes_as_a_picture_of_the_size_asked_for(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    form = {"controlnet_type": "canny", "width": "128", "height": "64"}
    answer = await client.post(HINT, data=form, files={"control_image": ("photo.png", picture())})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert not backend.asked


@pytest.mark.parametrize(
    ("form", "has_file", "field"),
    [
        ({}, True, "controlnet_type"),
        ({"controlnet_type": "canny"}, False, "control_image"),
        ({"controlnet_type": "scribble"}, True, "controlnet_type"),
        ({"controlnet_type": "canny", "prompt": "a cup"}, True, "prompt"),
        ({"controlnet_type": "canny", "width": "100"}, True, "width"),
    ],
)
async def test_what_is_wrong_with_a_hint_is_named(
    form: dict[str, str], has_file: bool, field: str, client: httpx.AsyncClient
) -> None:
    files: Any = {"control_image": ("photo.png", picture())} if has_file else {"fit": (None, "cover")}
    answer = await client.post(HINT, data=form, files=files)
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == field
