"""Two ways to serve diffusers' pipelines on Ray Serve, without Darkroom.

`one`    the shape of Ray's own Stable Diffusion sample: an ingress, and behind it a deployment that makes one picture
         at a time. The sample has no lock; Serve runs a synchronous method on threads, and a pipeline's scheduler has
         state, so without one it answers with other callers' pictures, or fails.
`batch`  `serve.batch` for requests that are alike, a queue for each kind of like requests, so that no request waits for
         a batch that it cannot be part of.

    python -m bench.online.peers.ray_serve one|batch PORT
"""

import asyncio
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Final

import ray
from fastapi import FastAPI, Request, Response
from ray import serve

from bench.engine.workload import likeness
from bench.online.messages import PEERS_HEALTH, PEERS_PATH, read_request
from bench.online.peers.pipelines import MOST, WAIT_S, LikePipelines
from deployments.engine.protocol import request as engine_request

CORES: Final = os.cpu_count() or 1

app = FastAPI()


@serve.deployment(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=1000)
@serve.ingress(app)
class PeerIngress:
    """Passes a request on, and the picture back."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @app.post(PEERS_PATH)
    async def generate(self, request: Request) -> Response:
        return Response(await self._model.generate.remote(await request.body()), media_type="image/png")

    @app.get(PEERS_HEALTH)
    async def health(self) -> str:
        return "ok"


@serve.deployment(ray_actor_options={"num_cpus": CORES})
class OneAtATime:
    """Makes one picture after the other. What waits, waits at Serve's router, and leaves it if its client does."""

    def __init__(self) -> None:
        self._pipelines = LikePipelines()
        self._lock = threading.Lock()

    def generate(self, body: bytes) -> bytes:
        with self._lock:
            return self._pipelines.files([read_request(body)])[0]


@serve.deployment(ray_actor_options={"num_cpus": CORES}, max_ongoing_requests=1000)
class LikeBatches:
    """Makes batches of like requests, one after the other."""

    def __init__(self) -> None:
        self._pipelines = LikePipelines()
        self._turn = asyncio.Lock()
        self._queues: dict[Hashable, Callable[[engine_request.Request], Awaitable[bytes]]] = {}

    async def generate(self, body: bytes) -> bytes:
        request = read_request(body)
        queue = self._queues.get(likeness(request))
        if queue is None:
            queue = self._queues[likeness(request)] = self._new_queue()
        return await queue(request)

    def _new_queue(self) -> Callable[[engine_request.Request], Awaitable[bytes]]:
        @serve.batch(max_batch_size=MOST, batch_wait_timeout_s=WAIT_S)
        async def make(requests: list[engine_request.Request]) -> list[bytes]:
            async with self._turn:
                return await asyncio.to_thread(self._pipelines.files, requests)

        queue: Callable[[engine_request.Request], Awaitable[bytes]] = make
        return queue


WAYS: Final[dict[str, Any]] = {"one": OneAtATime, "batch": LikeBatches}


def main() -> None:
    way, port = sys.argv[1:]
    ray.init(
        address="local",
        num_cpus=CORES,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=256 * 2**20,
        _temp_dir=os.environ["RAY_TMPDIR"],
    )
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": int(port)})
    # A decorator has made a deployment of it, which its type does not say.
    ingress: Any = PeerIngress
    serve.run(ingress.bind(WAYS[way].bind()), route_prefix="/")
    threading.Event().wait()


if __name__ == "__main__":
    main()
