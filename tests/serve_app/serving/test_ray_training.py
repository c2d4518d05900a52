"""A training that a caller begins over HTTP is a Ray task, and ends as a LoRA that the replicas serve."""

import base64
import io
import json
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.serve_app.api.routes.test_trainings import SETTINGS, archive, events_of

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

BASE = "/ads/v2/diffusion"
PROMPT: dict[str, Any] = {"prompt": "a red cup", "num_inference_steps": 4, "seed": 7, "width": 64, "height": 64}


async def test_what_callers_train_is_served_without_a_restart(client: httpx.AsyncClient) -> None:
    params = {"params": json.dumps(SETTINGS)}
    begun = await client.post(f"{BASE}/trainings", files={"zip": archive()}, data=params)
    assert begun.status_code == 202, begun.text
    place = begun.headers["location"]
    (_, name, last) = events_of(await client.get(f"{place}/events", timeout=200))[-1]
    assert (name, last["state"]) == ("done", "succeeded"), last
    changed = PROMPT | {"loras": [{"name": "cup", "scale": 4.0}]}
    too_early = await client.post(f"{BASE}/text-to-image", json=changed)
    assert (too_early.status_code, too_early.json()["error"]["param"]) == (422, "loras")
    assert (await client.post(f"{place}/register")).json() == {"name": "cup", "version": 1}
    assert await pixels(client, PROMPT) != await pixels(client, changed)


async def pixels(client: httpx.AsyncClient, request: dict[str, Any]) -> bytes:
    answer = (await client.post(f"{BASE}/text-to-image", json=request)).raise_for_status()
    return Image.open(io.BytesIO(base64.b64decode(answer.json()["images"][0]["data"]))).tobytes()
