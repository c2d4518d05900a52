"""What is measured over HTTP, each part a function of one server and one client."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from statistics import linear_regression, median
from typing import Any, Final

import httpx
import psutil

from bench.server import RunningServer
from bench.timing import percentile
from serve_app.client import BASE

ENDPOINT = f"{BASE}/text-to-image"

ASKED: Final[dict[str, Any]] = {"prompt": "a red cup on a blue background", "num_inference_steps": 8}
SIZE: Final = {"width": 128, "height": 128}
# The same small picture in the words of each; a seed comes beside them.
SURFACES: Final[dict[str, tuple[str, Callable[[int], dict[str, Any]]]]] = {
    "native": (ENDPOINT, lambda seed: ASKED | SIZE | {"sampler": "ddim", "guidance_scale": 7.0, "seed": seed}),
    "openai": (
        "/v1/images/generations",
        lambda seed: ASKED | {"size": "128x128", "sampler": "ddim", "guidance_scale": 7.0, "seed": seed},
    ),
    "a1111": (
        "/sdapi/v1/txt2img",
        lambda seed: {"prompt": ASKED["prompt"], "steps": 8, "sampler_name": "DDIM", "seed": seed} | SIZE,
    ),
    "huggingface": (
        "/hf/demo-sd",
        lambda seed: {
            "inputs": ASKED["prompt"],
            "parameters": {"num_inference_steps": 8, "scheduler": "DDIM", "guidance_scale": 7.0, "seed": seed} | SIZE,
        },
    ),
}


class Bench:
    """One server, and one client of it."""

    def __init__(self, server: RunningServer, http: httpx.AsyncClient) -> None:
        self.server, self.http = server, http

    async def ask(self, **changes: Any) -> tuple[float, httpx.Response]:
        """Sends a request; returns the milliseconds until the whole answer was there, and the answer."""
        began = time.perf_counter()
        answer = await self.http.post(ENDPOINT, json=ASKED | SIZE | changes)
        return (time.perf_counter() - began) * 1000, answer

    async def made(self, seed: int) -> tuple[float, float]:
        """Returns the milliseconds of a new picture for the client, and the engine's own share of them."""
        took, answer = await self.ask(seed=seed)
        assert answer.headers["X-Cache"] == "MISS", "the seed is not new"
        return took, answer.raise_for_status().json()["timings"]["total_ms"]

    async def hit(self, seed: int) -> float:
        """Returns the milliseconds of a picture that has been made before."""
        took, answer = await self.ask(seed=seed)
        assert answer.raise_for_status().headers["X-Cache"] == "HIT"
        return took


async def overhead(bench: Bench, *, requests: int = 200, first_seed: int = 1_000) -> dict[str, Any]:
    """What HTTP and Ray add to requests that come one after another."""
    times = [await bench.made(first_seed + i) for i in range(requests)]
    added = [took - engine for took, engine in times]
    return {
        "requests": requests,
        "p50_ms": round(median(added), 2),
        "p99_ms": round(percentile(added, 99), 2),
        "picture_p50_ms": round(median(took for took, _ in times), 2),
    }


async def surfaces(bench: Bench, *, requests: int = 100) -> dict[str, Any]:
    """Measures the same pictures from each surface, in turn, so that what else the machine does meets all alike."""
    times: dict[str, list[float]] = {name: [] for name in SURFACES}
    for index in range(requests):
        for place, (name, (path, body_of)) in enumerate(SURFACES.items()):
            began = time.perf_counter()
            answer = await bench.http.post(path, json=body_of(100_000 + len(SURFACES) * index + place))
            answer.raise_for_status()
            times[name].append((time.perf_counter() - began) * 1000)
    found = {f"{name}_p50_ms": round(median(taken), 2) for name, taken in times.items()}
    # Pairs are moments apart: their differences know less of the machine than the medians do.
    more = {
        f"{name}_more_ms": round(median(a - b for a, b in zip(taken, times["native"], strict=True)), 2)
        for name, taken in times.items()
        if name != "native"
    }
    return {"requests": requests, **found, **more}


async def hits(bench: Bench, *, requests: int = 1_000, callers: int = 8) -> dict[str, Any]:
    """Measures hits, one after another and with `callers` at once."""
    picture, _ = await bench.made(77)
    alone = [await bench.hit(77) for _ in range(requests // 4)]
    began = time.perf_counter()
    together = await run_concurrently(callers, [lambda: bench.hit(77)] * requests)
    seconds = time.perf_counter() - began
    return {
        "requests": requests,
        "callers": callers,
        "per_second": round(requests / seconds, 1),
        "p50_ms": round(median(together), 2),
        "p99_ms": round(percentile(together, 99), 2),
        "alone_p50_ms": round(median(alone), 2),
        "picture_ms": round(picture, 2),
        "times_faster": round(picture / median(alone), 1),
    }


async def identical(bench: Bench, *, requests: int = 500) -> dict[str, Any]:
    """Sends equal requests at once for a picture that has not been made yet."""
    before = await bench.server.statistics(bench.http)
    answers = await asyncio.gather(*(bench.ask(seed=4_242) for _ in range(requests)))
    after = await bench.server.statistics(bench.http)
    files = {answer.raise_for_status().json()["images"][0]["data"] for _, answer in answers}
    return {
        "requests": requests,
        "pictures_made": after["total"]["images"] - before["total"]["images"],
        "different_answers": len(files),
        "x_cache": dict(Counter(answer.headers["X-Cache"] for _, answer in answers)),
    }


async def memory(bench: Bench, *, requests: int = 10_000, looks: int = 40) -> dict[str, Any]:
    """Resident bytes of the ingress while it answers everything: new pictures, hits, mistakes, callers who leave."""
    dice = random.Random(1)
    (ingress,) = bench.server.ingresses()
    process = psutil.Process(ingress)
    seen: list[tuple[int, int]] = []

    async def one() -> None:
        match dice.random():
            case die if die < 0.02:
                await bench.ask(seed=dice.randrange(2**31), num_inference_steps=2, width=64, height=64)
            case die if die < 0.2:
                await bench.ask(width=dice.randrange(1, 8))
            case die if die < 0.25:
                await bench.http.get(f"{BASE}/stats")
            case die if die < 0.27:
                await _leaving(bench.ask(seed=dice.randrange(2**31)), dice.uniform(0.001, 0.1))
            case _:
                await bench.ask(seed=dice.randrange(20), num_inference_steps=2, width=64, height=64)

    for look in range(looks):
        await run_concurrently(8, [one] * (requests // looks))
        seen.append(((look + 1) * requests // looks, process.memory_info().rss))
    settled = seen[looks // 2 :]
    slope = linear_regression([count for count, _ in settled], [rss for _, rss in settled]).slope
    return {
        "requests": requests,
        "first_mb": round(seen[0][1] / 2**20, 1),
        "last_mb": round(seen[-1][1] / 2**20, 1),
        "slope_bytes_per_request": round(slope, 1),
    }


async def run_concurrently(callers: int, work: Sequence[Callable[[], Awaitable[Any]]]) -> list[Any]:
    """Runs `work` with that many callers at once, and returns the results."""
    places = asyncio.Semaphore(callers)

    async def placed(one: Callable[[], Awaitable[Any]]) -> Any:
        async with places:
            return await one()

    return list(await asyncio.gather(*(placed(one) for one in work)))


async def _leaving(asked: Awaitable[Any], after_s: float) -> None:
    try:
        await asyncio.wait_for(asked, after_s)
    except TimeoutError:
        return


async def with_redis(bench: Bench, *, requests: int = 100) -> dict[str, Any]:
    """Measures misses, which read from Redis and write to it, and hits that the memory of the ingress has forgotten."""
    missed = await overhead(bench, requests=requests, first_seed=10_000)
    # The memory tier is too small for any picture here, so Redis answers.
    hit = [await bench.hit(10_000 + i) for i in range(requests)]
    return {
        "requests": requests,
        "miss_p50_ms": missed["p50_ms"],
        "miss_p99_ms": missed["p99_ms"],
        "hit_p50_ms": round(median(hit), 2),
        "hit_p99_ms": round(percentile(hit, 99), 2),
    }
