"""End to end over HTTP, on a real local Ray with real (tiny) networks: what only the whole system can show."""

import asyncio
import base64
import io
import os
import random
import re
import signal
import time
from collections.abc import Callable, Iterable
from typing import Any

import httpx
import pytest
from PIL import Image

from bench.prometheus import Exported, scrape_until, total
from serve_app.launch.local_cluster import HEALTH_PATH
from tests.k8s.queries import QUERIES, used
from tests.serve_app.servers import Launched

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

BASE = "/ads/v2/diffusion"
PROMPT: dict[str, Any] = {"prompt": "a red cup", "num_inference_steps": 4, "seed": 7, "width": 64, "height": 64}


async def stats(client: httpx.AsyncClient) -> dict[str, Any]:
    """Fresh ones: reports are kept for a second."""
    await asyncio.sleep(1.1)
    answer: dict[str, Any] = (await client.get(f"{BASE}/stats")).raise_for_status().json()
    return answer


async def until(holds: Callable[[dict[str, Any]], bool], client: httpx.AsyncClient, within_s: float) -> dict[str, Any]:
    deadline = time.monotonic() + within_s
    while not holds(last := await stats(client)):
        assert time.monotonic() < deadline, f"it did not come to that: {last}"
    return last


def picture(item: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(item["data"])))


def pixels(item: dict[str, Any]) -> bytes:
    """What is the same of the same picture: each file is signed anew."""
    return picture(item).tobytes()


async def test_a_prompt_becomes_a_picture(client: httpx.AsyncClient) -> None:
    answer = await client.post(f"{BASE}/text-to-image", json=PROMPT)
    assert answer.status_code == 200, answer.text
    (item,) = answer.json()["images"]
    assert picture(item).size == (64, 64)
    assert item["seed"] == 7
    assert answer.json()["model"] == "tiny"


async def test_the_same_request_gives_the_same_picture(client: httpx.AsyncClient) -> None:
    request = PROMPT | {"model_name": "a/tiny-model", "seed": 11}
    first, second = [(await client.post(f"{BASE}/text-to-image", json=request)).json() for _ in range(2)]
    assert pixels(first["images"][0]) == pixels(second["images"][0])


async def test_a_replica_counts_tokens_and_makes_hints_for_the_page_at_the_root(client: httpx.AsyncClient) -> None:
    assert "<title>Darkroom</title>" in (await client.get("/")).text
    counted = (await client.post(f"{BASE}/tokens", json={"prompt": "a red cup", "negative_prompt": "cat"})).json()
    assert (counted["prompt"]["tokens"], counted["negative_prompt"]["tokens"]) == (3, 1)
    wrong = await client.post(f"{BASE}/tokens", json={"prompt": "(cup:99)"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (422, "prompt")
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "PNG")
    form = {"controlnet_type": "canny"}
    hint = await client.post(f"{BASE}/hint", data=form, files={"control_image": buffer.getvalue()})
    assert (hint.status_code, hint.json()["error"]["param"]) == (422, "controlnet_type")


async def test_pictures_reach_a_replica_and_come_back_changed_where_they_should(client: httpx.AsyncClient) -> None:
    buffer = io.BytesIO()
    Image.radial_gradient("L").resize((64, 64)).convert("RGB").save(buffer, "PNG")
    files, fields = {"image": buffer.getvalue()}, {"prompt": "a cup", "mask_type": "left", "num_inference_steps": "4"}
    answer = await client.post(f"{BASE}/inpaint", files=files, data=fields)
    assert answer.status_code == 200, answer.text
    made = picture(answer.json()["images"][0])
    before = Image.open(io.BytesIO(buffer.getvalue()))
    right, left = (32, 0, 64, 64), (0, 0, 32, 64)
    assert made.crop(right).tobytes() == before.crop(right).tobytes()
    assert made.crop(left).tobytes() != before.crop(left).tobytes()


async def test_a_file_that_only_a_decoder_finds_broken_is_422(client: httpx.AsyncClient) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((200, 200), 90).convert("RGB").save(buffer, "PNG")
    files = {"init_image": buffer.getvalue()[:2000]}
    answer = await client.post(f"{BASE}/image-to-image", files=files, data={"prompt": "a cup"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "init_image")


async def test_a_burst_of_different_requests_shares_unet_calls(client: httpx.AsyncClient) -> None:
    before = await stats(client)
    samplers = ("ddim", "euler", "dpmpp_2m", "euler_a")
    steps = range(20, 28)
    requests = [PROMPT | {"num_inference_steps": n, "seed": n, "sampler": samplers[n % 4]} for n in steps]
    answers = await asyncio.gather(*(client.post(f"{BASE}/text-to-image", json=request) for request in requests))
    assert [answer.status_code for answer in answers] == [200] * 8
    after = await stats(client)
    calls, rows = (after[key] - before[key] for key in ("unet_calls", "unet_rows"))
    alone = sum(steps)
    # Two rows for each guided step. Requests reach the engine some milliseconds apart, so the bound is not exact here.
    assert rows == 2 * alone
    assert calls < alone / 2


async def test_an_unknown_model_is_404(client: httpx.AsyncClient) -> None:
    answer = await client.post(f"{BASE}/text-to-image", json=PROMPT | {"model_name": "nobody/nothing"})
    assert answer.status_code == 404
    assert "Traceback" not in answer.text


async def test_a_wrong_field_is_422_and_named(client: httpx.AsyncClient) -> None:
    answer = await client.post(f"{BASE}/text-to-image", json=PROMPT | {"width": 63})
    assert answer.status_code == 422
    assert "width" in answer.text


LONG = PROMPT | {"num_inference_steps": 150, "num_images": 16, "width": 256, "height": 256}


async def test_a_caller_that_leaves_frees_its_rows(client: httpx.AsyncClient) -> None:
    await client.get(HEALTH_PATH)
    with pytest.raises(httpx.ReadTimeout):
        await client.post(f"{BASE}/text-to-image", json=LONG, timeout=1.0)
    freed = await until(lambda now: now["images_running"] == 0 and now["images_waiting"] == 0, client, within_s=10)
    assert freed["cancelled"] >= 1


async def test_a_thousand_callers_that_leave_at_random_moments_leave_no_rows(client: httpx.AsyncClient) -> None:
    """Ray's own cancellation loses some of these."""
    before = await stats(client)
    moments, places = random.Random(1), asyncio.Semaphore(60)

    async def comes_and_goes(seed: int) -> bool:
        async with places:
            try:
                await client.post(f"{BASE}/text-to-image", json=LONG | {"seed": seed}, timeout=moments.uniform(0.01, 1))
            except httpx.TransportError:
                return True
            return False

    left = await asyncio.gather(*(comes_and_goes(seed) for seed in range(1000)))
    after = await until(lambda now: now["images_running"] == 0 and now["images_waiting"] == 0, client, within_s=20)
    assert sum(left) > 900
    # How many get as far as an engine within their second is the machine's matter; some do.
    assert after["cancelled"] > before["cancelled"]
    assert after["active"] == 0
    assert after["broken"] == before["broken"]


async def test_no_header_of_a_client_steers_ray(client: httpx.AsyncClient) -> None:
    """Its proxy would end this request after 20 ms, and give it to a replica that hosts a model of that name."""
    request = PROMPT | {"num_inference_steps": 100, "width": 128, "height": 128}
    headers = {"x-request-timeout-seconds": "0.02", "serve_multiplexed_model_id": "tiny", "X-Request-Id": "mine-1"}
    answer = await client.post(f"{BASE}/text-to-image", json=request, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers.get_list("x-request-id") == ["mine-1"]
    refused = await client.post(f"{BASE}/text-to-image", json={}, headers={"x-request-id": "not good"})
    (made,) = refused.headers.get_list("x-request-id")
    assert made == refused.json()["request_id"]


async def test_a_caller_that_leaves_is_noticed_whatever_it_says(client: httpx.AsyncClient) -> None:
    before = await stats(client)
    headers = {"x-request-disconnect-disabled": "?1"}
    with pytest.raises(httpx.ReadTimeout):
        await client.post(f"{BASE}/text-to-image", json=LONG, headers=headers, timeout=1.0)
    freed = await until(lambda now: now["images_running"] == 0 and now["images_waiting"] == 0, client, within_s=10)
    assert freed["cancelled"] == before["cancelled"] + 1


def of_prometheus(stats: dict[str, Any]) -> dict[str, float]:
    """What Prometheus has to say where the statistics say this."""
    tiny = stats["models"]["tiny"]
    memory = stats["engines"][0]["memory"]
    return {
        **{f'requests{{outcome="{outcome}"}}': stats[outcome] for outcome in ("finished", "refused", "cancelled")},
        'images{status="done"}': tiny["images"],
        'images{status="failed"}': tiny["failures"],
        'engine_requests{outcome="accepted"}': tiny["requests"],
        'engine_requests{outcome="cancelled"}': tiny["cancelled"],
        "steps": tiny["row_steps"],
        "wasted_steps": tiny["wasted_steps"],
        "unet_calls": tiny["unet_calls"],
        'unet_rows{padding="no"}': tiny["unet_rows"],
        'unet_rows{padding="yes"}': tiny["padded_rows"] - tiny["unet_rows"],
        'oom{action="split"}': tiny["splits"],
        "batch_size_count": sum(tiny["batch_sizes"].values()),
        "queue_wait_seconds_count": tiny["durations_ms"]["queue"]["60m"]["count"],
        'inference_seconds_count{stage="denoise"}': tiny["durations_ms"]["denoise"]["60m"]["count"],
        "request_duration_seconds_count": stats["latency_ms"]["60m"]["count"],
        "queue_depth": stats["images_waiting"],
        "running_images": stats["images_running"],
        "capacity_rows": stats["engines"][0]["capacity"],
        "backlog_seconds": stats["engines"][0]["backlog_seconds"],
        'device_memory_bytes{kind="held"}': memory["held_bytes"],
        "loaded_models": stats["loaded_models"],
    }


def told(samples: Exported, asked: Iterable[str]) -> dict[str, float]:
    """The same of what is exported. Nothing is exported of a counter that has never counted."""
    out = {}
    for name in asked:
        metric, _, labels = name.partition("{")
        kind = "" if metric.endswith("_count") or metric in GAUGES else "_total"
        out[name] = total(samples, f"diffusion_{metric}{kind}", **dict(re.findall(r'(\w+)="(\w+)"', labels)))
    return out


GAUGES = ("queue_depth", "running_images", "capacity_rows", "backlog_seconds", "device_memory_bytes", "loaded_models")


async def test_prometheus_and_the_statistics_say_the_same(server: Launched, client: httpx.AsyncClient) -> None:
    await asyncio.gather(
        *(client.post(f"{BASE}/text-to-image", json=PROMPT | {"seed": seed, "num_images": 2}) for seed in range(5))
    )
    refused = await client.post(f"{BASE}/text-to-image", json=PROMPT | {"deadline_ms": 1, "num_inference_steps": 150})
    assert refused.status_code == 504
    expected = of_prometheus(await stats(client))
    assert all(expected[name] > 0 for name in ('requests{outcome="refused"}', 'images{status="done"}', "wasted_steps"))
    exported = await asyncio.to_thread(scrape_until, server.process.pid, lambda now: told(now, expected) == expected)
    assert told(exported, expected) == expected
    # Coarser buckets, the same samples.
    within_8_s = total(exported, "diffusion_queue_wait_seconds_bucket", le="8.0")
    assert 0 < within_8_s <= expected["queue_wait_seconds_count"]


# Long enough to be met on its way: what engines say of themselves is up to a second old.
MARKED = PROMPT | {"num_inference_steps": 150, "num_images": 4, "width": 256, "height": 256}


AGAIN_WITHIN_S = 90.0
"""For a start of a replica, half of it on two slow cores, and for all of the work."""


@pytest.mark.parametrize(("signal_number", "seed"), [(signal.SIGKILL, 3), (signal.SIGSTOP, 5)])
async def test_a_replica_killed_or_stopped_on_the_way_does_not_lose_the_picture(
    server: Launched, client: httpx.AsyncClient, signal_number: int, seed: int
) -> None:
    """One that is stopped answers nobody and ends nothing: Serve has to find that out, and to kill it."""
    request = MARKED | {"seed": seed}
    expected = (await client.post(f"{BASE}/text-to-image", json=request)).json()
    before = await stats(client)
    asked = asyncio.create_task(client.post(f"{BASE}/text-to-image", json=request))
    await until(lambda now: now["images_running"] > 0, client, within_s=10)
    (victim,) = server.replicas()
    os.kill(victim, signal_number)
    lost_at = time.monotonic()
    answer = await asked
    assert answer.status_code == 200, answer.text
    assert list(map(pixels, answer.json()["images"])) == list(map(pixels, expected["images"]))
    assert time.monotonic() - lost_at < AGAIN_WITHIN_S
    assert victim not in server.replicas()
    assert (await stats(client))["replays"] == before["replays"] + 1


async def test_health_is_good_again_after_a_replica_died(client: httpx.AsyncClient) -> None:
    deadline = time.monotonic() + 30
    while (await client.get(HEALTH_PATH)).status_code != 200:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.5)


# Nothing is exported of a counter that has never counted, and these cannot count on this server, which has no cache, no
# limits and no faults of these kinds.
NEVER_HERE = {
    f"ray_diffusion_{name}_total"
    for name in (
        "callbacks",
        "cache_errors",
        "cache_requests",
        "cache_saved_seconds",
        "oom",
        "quarantined",
        "rate_limited",
    )
}


async def test_all_that_dashboard_and_alerts_ask_for_is_exported(server: Launched, client: httpx.AsyncClient) -> None:
    """After all other tests: by then everything else that is counted has happened once."""
    assert (await client.post(f"{BASE}/text-to-image", json=PROMPT)).is_success
    asked = [(name, labels) for query in QUERIES for name, labels in used(query) if name not in NEVER_HERE]
    names = {name for name, _ in asked}
    found = await asyncio.to_thread(scrape_until, server.process.pid, lambda now: names <= {each.name for each in now})
    labels = {sample.name: sample.labels.keys() for sample in found}
    assert names - labels.keys() == set()
    assert all(matchers.keys() <= labels[name] for name, matchers in asked)
