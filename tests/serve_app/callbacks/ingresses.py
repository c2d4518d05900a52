"""Ingress processes with callbacks, as far as jobs go: the API over a scripted backend, and the way to Redis."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from bench.redis_server import RedisServer
from serve_app.api.application import create_api
from serve_app.callbacks.callbacks import Callbacks
from serve_app.config.callbacks import CallbacksConfig
from serve_app.config.sections import JobsConfig
from serve_app.jobs.local_jobs import LocalJobs
from serve_app.jobs.redis_jobs import RedisJobs
from serve_app.jobs.redis_store import RedisJobStore
from serve_app.service import DiffusionService
from serve_app.store.redis import RedisTier
from tests.serve_app.api.routes.test_cancel import Named
from tests.serve_app.callbacks.receivers import Receiver
from tests.serve_app.fakes import FakeBackend, http
from tests.serve_app.redis_servers import redis_at

BATCH = "/ads/v2/diffusion/batch-generate"
SECRET = "whsec_" + base64.b64encode(b"the newest secret of the operator").decode()
OLD_SECRET = "whsec_" + base64.b64encode(b"the one that is being replaced...").decode()


def secret_file(folder: Path, name: str, text: str) -> dict[str, str]:
    (folder / name).write_text(text)
    return {"file": str(folder / name)}


def callbacks_config(folder: Path, receiver: Receiver, **more: Any) -> CallbacksConfig:
    """Both kinds, to `receiver`, and quick to try again."""
    settings = {
        "webhook_secrets": [secret_file(folder, "new", SECRET), secret_file(folder, "old", OLD_SECRET)],
        "uploads": True,
        "allow_http": True,
        "ports": [receiver.port, 443],
        "allow_networks": ["127.0.0.1/32"],
        "first_retry_s": 0.02,
        "longest_retry_s": 0.1,
    }
    return CallbacksConfig.model_validate(settings | more)


class IngressWithCallbacks:
    """`app`, a `client` of it, and the scripted `backend` behind."""

    def __init__(self, app: FastAPI, client: httpx.AsyncClient, backend: FakeBackend, tier: RedisTier | None) -> None:
        self.app, self.client, self.backend, self.tier = app, client, backend, tier
        self.service: DiffusionService = app.state.service
        self.callbacks: Callbacks = app.state.callbacks

    async def submit(self, *entries: dict[str, Any], tenant: str = "", **fields: Any) -> dict[str, Any]:
        body = {"requests": list(entries) or [{"prompt": "a cup", "seed": 1}], **fields}
        answer = await self.client.post(BATCH, json=body, headers={"x-tenant": tenant})
        assert answer.status_code == 202, answer.text
        job: dict[str, Any] = answer.json()
        return job

    async def job(self, job: dict[str, Any], tenant: str = "") -> dict[str, Any]:
        answer: dict[str, Any] = (await self.client.get(job["url"], headers={"x-tenant": tenant})).json()
        return answer

    async def settled(self, job: dict[str, Any], tenant: str = "", seconds: float = 15.0) -> dict[str, Any]:
        """The job, once it is over and nothing of its callbacks is pending."""
        async with asyncio.timeout(seconds):
            while True:
                now = await self.job(job, tenant)
                over = now["state"] not in ("queued", "running")
                waiting = any(each["state"] == "pending" for each in now.get("webhooks", ()))
                if over and not waiting and not now.get("uploads", {}).get("pending"):
                    return now
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        await self.app.state.jobs.stop()
        await self.callbacks.stop()

    async def die(self) -> None:
        """Without a word: nothing that it had begun goes on, and nobody is told."""
        outbox: Any = self.callbacks._outbox
        outbox.postpone = _postpones_nothing
        await asyncio.gather(*(each.stop() for each in self.callbacks._deliverers.values()))


async def _postpones_nothing(*_: object) -> None:
    return None


@asynccontextmanager
async def ingress(
    config: CallbacksConfig | None, redis: RedisServer | None = None, name: str = "a", **jobs: Any
) -> AsyncIterator[IngressWithCallbacks]:
    """One, running."""
    backend, tier, store = FakeBackend(), None, None
    settings = JobsConfig.model_validate({"lease_s": 0.6} | jobs)
    if redis is not None:
        tier = RedisTier(redis_at(redis.url, timeout_ms=1000))
        store = RedisJobStore(LocalJobs(settings), RedisJobs(tier, settings, tier.signing_key("jobs"), name))
    service = DiffusionService(backend)
    app = create_api(service, jobs_config=settings, job_store=store, redis=tier, callbacks=config)
    async with http(Named(app)) as client:
        app.state.jobs.start()
        if app.state.callbacks is not None:
            app.state.callbacks.start()
        try:
            yield IngressWithCallbacks(app, client, backend, tier)
        finally:
            await app.state.jobs.stop()
            if app.state.callbacks is not None:
                await app.state.callbacks.stop()
            if tier is not None:
                await tier.close()
