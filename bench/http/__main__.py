"""Measures what HTTP and Ray add to a picture, and what the cache saves.

Why: everything between a socket and the engine (Ray's proxy, the ingress, validation, the cache, the way to a replica)
is time that no picture needs, and a cache is worth its complexity only if a hit is far cheaper than a picture. This
bench sends requests to a real local Ray Serve with the demo model over real HTTP:

    overhead   one request after another: the client's time minus the engine's own, which the answer contains
    surfaces   the same pictures in turn from the native endpoint and from those for other servers' clients
    hits       the same request again and again, from the memory of the ingress: requests a second, p99
    redis      both once more with a real Redis as the shared tier, misses and hits that only Redis has
    identical  500 equal requests at once: how many pictures are made
    memory     10,000 mixed requests: by how much the ingress' process grows with each thousand

Prints a card, the forecast and the findings; the last line is one JSON document. It exits with 1 when a target was
missed.

    python -m bench.http
    python -m bench.http --only overhead,hits
"""

import argparse
import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from statistics import linear_regression, median
from typing import Any, Final

import httpx
import psutil
import torch

from bench.card import card, print_card
from bench.options import names_of
from bench.redis_server import redis_server
from bench.server import RunningServer, run_server
from bench.timing import percentile
from serve_app.client import BASE
from serve_app.config.server import AppConfig

LOGS = Path(__file__).parents[2] / "build" / "http"
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
SURFACE_MS: Final = 5.0
"""What another surface may take more than the native one, at the median."""

OVERHEAD_P50_MS: Final = 25.0
HIT_RATIO: Final = 20.0
SLOPE_BYTES: Final = 1_000.0
"""Of the ingress' process for each request, at the end of ten thousand: less is an allocator's noise."""

FORECAST: Final[dict[str, str]] = {
    "overhead": "p50 18 ms, p99 40 ms: two Ray hops of 5 to 7 ms, and JSON",
    "surfaces": "openai and huggingface 1 ms more, a1111 4 ms more for its previews",
    "hits": "150 a second, p99 40 ms: one Ray hop, hashing and base64; 30 times faster than the picture",
    "redis": "1 ms more on a miss, 2 ms more on a hit",
    "identical": "one picture",
    "memory": "no slope once the cache is full",
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
    together = await _run_concurrently(callers, [lambda: bench.hit(77)] * requests)
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
        await _run_concurrently(8, [one] * (requests // looks))
        seen.append(((look + 1) * requests // looks, process.memory_info().rss))
    settled = seen[looks // 2 :]
    slope = linear_regression([count for count, _ in settled], [rss for _, rss in settled]).slope
    return {
        "requests": requests,
        "first_mb": round(seen[0][1] / 2**20, 1),
        "last_mb": round(seen[-1][1] / 2**20, 1),
        "slope_bytes_per_request": round(slope, 1),
    }


async def _run_concurrently(callers: int, work: Sequence[Callable[[], Awaitable[Any]]]) -> list[Any]:
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


PARTS: Final = {"overhead": overhead, "surfaces": surfaces, "hits": hits, "identical": identical, "memory": memory}


def misses(report: dict[str, Any]) -> list[str]:
    """Returns the targets that were missed, one line each."""
    missed = []
    if (part := report.get("overhead")) and part["p50_ms"] > OVERHEAD_P50_MS:
        missed.append(f"HTTP and Ray add {part['p50_ms']} ms at the median, target {OVERHEAD_P50_MS}")
    for name in SURFACES:
        if (part := report.get("surfaces")) and part.get(f"{name}_more_ms", 0.0) > SURFACE_MS:
            missed.append(f"{name} takes {part[f'{name}_more_ms']} ms more than native, target {SURFACE_MS}")
    if (part := report.get("hits")) and part["times_faster"] < HIT_RATIO:
        missed.append(f"a hit is {part['times_faster']} times faster than the picture, target {HIT_RATIO}")
    if (part := report.get("identical")) and (part["pictures_made"], part["different_answers"]) != (1, 1):
        missed.append(f"{part['pictures_made']} pictures of equal requests, target 1")
    if (part := report.get("memory")) and part["slope_bytes_per_request"] > SLOPE_BYTES:
        missed.append(f"the ingress grows by {part['slope_bytes_per_request']} bytes a request")
    return missed


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options().parse_args(arguments)
    facts = card(torch.device("cpu"))
    print_card(facts)
    report = asyncio.run(measure(options.only))
    missed = misses(report)
    for line in missed:
        print(f"MISSED    {line}")
    print(json.dumps({"bench": "http", **facts, **report, "missed": missed}))
    return 1 if missed else 0


async def measure(only: Sequence[str]) -> dict[str, Any]:
    """Runs the chosen parts, each on the server that it needs."""
    report: dict[str, Any] = {}
    with run_server(config_of(), LOGS / "server.log") as server:
        async with client_of(server) as http:
            for name in (name for name in PARTS if name in only):
                _say(report, name, await PARTS[name](Bench(server, http)))
    if "redis" in only:
        with redis_server() as redis, run_server(config_of(redis.url), LOGS / "server-redis.log") as server:
            async with client_of(server) as http:
                _say(report, "redis", await with_redis(Bench(server, http)))
    return report


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


def config_of(redis: str | None = None) -> AppConfig:
    """One replica of the demo model, as `make serve` has it; with `redis` its cache is there and nowhere else.

    The cache in memory is small: it is full after some hundred requests, and only then can a slope be told from it.
    """
    deployment = {"name": "demo", "models": ["demo-sd"], "device": "cpu", "dtype": "float32", "num_cpus": 0.1}
    ends = {"graceful_shutdown_timeout_s": 10, "graceful_shutdown_wait_loop_s": 0.2}
    config: dict[str, Any] = {
        "cache": {"memory_bytes": 2**21},
        "models": [{"name": "demo-sd", "controlnets": {}}],
        "deployments": [deployment | ends],
        "ingress": ends | {"graceful_shutdown_timeout_s": 11},
    }
    if redis is not None:
        # Any text of some length will do for a key; this file is one that the server finds.
        config |= {"redis": {"url": redis, "key": {"file": __file__}}, "cache": {"memory_bytes": 0}}
    return AppConfig.model_validate(config)


def client_of(server: RunningServer) -> httpx.AsyncClient:
    unbounded = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=120, limits=unbounded)


def _say(report: dict[str, Any], name: str, found: dict[str, Any]) -> None:
    report[name] = found
    print(f"{name:9} forecast: {FORECAST[name]}")
    print(f"{'':9} " + ", ".join(f"{key} {value}" for key, value in found.items()) + "\n", flush=True)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.http", description="What HTTP and Ray add to a picture, and what the cache saves."
    )
    parser.add_argument("--only", type=names_of(FORECAST), default=tuple(FORECAST), help="parts, with commas between")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
