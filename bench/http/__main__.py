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
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import httpx
import torch

from bench.card import card, print_card
from bench.http.measurements import SURFACES, Bench, hits, identical, memory, overhead, surfaces, with_redis
from bench.options import names_of
from bench.redis_server import redis_server
from bench.server import RunningServer, run_server
from serve_app.config.server import AppConfig

LOGS = Path(__file__).parents[2] / "build" / "http"

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
