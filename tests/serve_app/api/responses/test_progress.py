"""The first `progress` names the steps that the engine will take, whatever the sampler and the strength."""

from typing import Any

import httpx
import pytest

from deployments.engine.protocol.events import Accepted, Finished, Progress
from deployments.engine.protocol.request import Request
from serve_app.client import parse_events
from tests.serve_app.api.parsing.test_hostile_forms import picture
from tests.serve_app.fakes import EVENTS, PATH, TIMINGS, FakeBackend, Step, image

DOOR = "/ads/v2/diffusion/image-to-image"


def honest(request: Request) -> list[Step]:
    """Says and counts as the engine does."""
    steps = request.evaluations
    return [
        Accepted(request.id, 0, steps),
        Progress(request.id, steps, steps),
        image(request, 0),
        Finished(request.id, TIMINGS),
    ]


@pytest.mark.parametrize("sampler", ["ddim", "pndm", "heun", "kdpm2", "unipc"])
@pytest.mark.parametrize(("strength", "euler_steps"), [(None, 20), (0.5, 10), (0.33, 6), (1.0, 20), (0.8, 16)], ids=str)
async def test_progress_counts_the_same_steps_from_first_to_last(
    sampler: str, strength: float | None, euler_steps: int, client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.script = honest
    said: dict[str, Any] = {"prompt": "a cup", "num_inference_steps": 20, "sampler": sampler}
    if strength is None:
        answer = await client.post(PATH, json=said, headers=EVENTS)
    else:
        form = {name: str(value) for name, value in said.items()} | {"strength": str(strength)}
        answer = await client.post(DOOR, data=form, files={"init_image": picture()}, headers=EVENTS)
    told = [event.data for event in parse_events([*answer.text.splitlines(), ""]) if event.name == "progress"]
    assert (told[0]["step"], told[-1]["step"]) == (0, told[0]["steps"])
    assert len({event["steps"] for event in told}) == 1
    if sampler in ("ddim", "unipc"):
        assert told[0]["steps"] == euler_steps
