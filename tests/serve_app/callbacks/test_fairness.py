"""A tenant whose receivers are dead holds up nobody else's messages, and a crowded host costs next to nothing."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import pytest

from bench.redis_server import RedisServer
from serve_app.callbacks.deliverer import Deliverer, DeliveryAttempt
from serve_app.callbacks.message import Message
from serve_app.callbacks.outbox import MemoryOutbox, Outbox
from serve_app.callbacks.redis_outbox import RedisOutbox
from serve_app.config.callbacks import CallbacksConfig
from serve_app.store.redis import RedisTier
from tests.serve_app.callbacks.ingresses import IngressWithCallbacks, callbacks_config, ingress
from tests.serve_app.callbacks.receivers import Manner, Receiver, receiver
from tests.serve_app.fakes import until
from tests.serve_app.redis_servers import redis_at

HANGS: Final[list[Manner]] = ["hang"] * 1000


@pytest.fixture
async def heard() -> AsyncIterator[Receiver]:
    async with receiver() as running:
        running.behaves("/dead", *HANGS)
        yield running


@pytest.fixture(params=["memory", "redis"])
def redis(request: pytest.FixtureRequest) -> RedisServer | None:
    if request.param == "memory":
        return None
    server: RedisServer = request.getfixturevalue("server")
    with server.client() as client:
        client.flushall()
    return server


async def put(here: IngressWithCallbacks, url: str, tenant: str, images: int = 1) -> dict[str, object]:
    """A job whose images are put there."""
    entries = [{"prompt": "a", "seed": seed} for seed in range(images)]
    return await here.submit(*entries, tenant=tenant, upload_url=f"{url}?{{entry}}")


async def test_a_tenants_dead_receiver_holds_up_nobody_elses_messages(
    redis: RedisServer | None, heard: Receiver, tmp_path: Path
) -> None:
    """Neither by the places that its messages have, nor by the tries that they hold."""
    config = callbacks_config(tmp_path, heard, waiting=20, in_flight=4, in_flight_per_host=256)
    async with ingress(config, redis) as here:
        await put(here, heard.url("/dead"), "acme", images=40)
        await asyncio.sleep(0.5)
        for _ in range(3):
            job = await put(here, heard.url("/put"), "other", images=2)
            done = await here.settled(job, "other", seconds=5)
            assert done["uploads"] == {"uploaded": 2, "upload_failed": 0, "pending": 0}


async def test_where_more_tenants_are_dead_than_there_are_slots_each_has_one_turn_before_a_first_try(
    redis: RedisServer | None, heard: Receiver, tmp_path: Path
) -> None:
    dead, slots, timeout_s = 5, 2, 1.5
    config = callbacks_config(tmp_path, heard, in_flight=slots, in_flight_per_host=256, upload_timeout_s=timeout_s)
    async with ingress(config, redis) as here:
        for number in range(dead):
            await put(here, heard.url("/dead"), f"dead-{number}", images=10)
        await until(lambda: heard.at_a_time == slots)
        await asyncio.sleep(0.5)
        began = time.monotonic()
        await put(here, heard.url("/put"), "other")
        await until(lambda: len(heard.at("/put")) == 1, 30)
        assert time.monotonic() - began < timeout_s * (dead / slots + 1) + 1


async def test_many_hosts_of_one_tenants_hold_up_nobody_else(
    redis: RedisServer | None, heard: Receiver, tmp_path: Path
) -> None:
    """As many as a template with `{entry}` in its host makes: none of them has more than one."""
    async with AsyncExitStack() as stack:
        dead = [await stack.enter_async_context(receiver()) for _ in range(6)]
        for each in dead:
            each.behaves("/dead", *HANGS)
        ports = [each.port for each in (heard, *dead)]
        config = callbacks_config(tmp_path, heard, ports=ports, in_flight=4, in_flight_per_host=1)
        async with ingress(config, redis) as here:
            entries = [{"prompt": "a", "seed": seed} for seed in range(len(dead))]
            await here.submit(*entries, tenant="acme", upload_urls=[[each.url("/dead")] for each in dead])
            await until(lambda: sum(each.at_a_time for each in dead) > 1)
            done = await here.settled(await put(here, heard.url("/put"), "other"), "other", seconds=5)
            assert done["uploads"] == {"uploaded": 1, "upload_failed": 0, "pending": 0}


@pytest.fixture
async def outbox(redis: RedisServer | None) -> AsyncIterator[Outbox]:
    if redis is None:
        yield MemoryOutbox(10_000, 100)
        return
    tier = RedisTier(redis_at(redis.url, timeout_ms=1000))
    yield RedisOutbox(tier, 10_000, 100)
    await tier.close()


def count_calls(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts what is asked of the outbox."""
    calls = Counter[str]()
    for name in ("claim", "postpone"):
        method = getattr(outbox, name)

        async def counted(*args: object, name: str = name, method: object = method) -> object:
            calls[name] += 1
            return await method(*args)  # type: ignore[operator]

        monkeypatch.setattr(outbox, name, counted)
    return calls


async def settle_nothing(*_: object) -> None:
    return None


async def deliver(
    outbox: Outbox, messages: int, seconds: float, sending: asyncio.Semaphore, sent: list[Message]
) -> None:
    """Sends `messages` to one host, of which each ends when `sending` lets it."""
    config = CallbacksConfig.model_validate({"uploads": True, "in_flight": 16, "in_flight_per_host": 4})
    made = [
        Message(
            id=f"m{number}", kind="upload", job="j", tenant="acme", place=f"{number}/0", url="https://a/", created=0
        )
        for number in range(messages)
    ]
    for place in range(0, messages, 100):
        await outbox.add(made[place : place + 100])

    async def send(message: Message) -> DeliveryAttempt:
        await sending.acquire()
        sent.append(message)
        return DeliveryAttempt("done")

    deliverer = Deliverer("upload", config, outbox, send, settle_nothing, Counter())
    deliverer.start()
    await asyncio.sleep(seconds)
    await deliverer.stop()


async def test_messages_that_wait_for_their_host_cost_one_look_a_second(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, sent = count_calls(outbox, monkeypatch), list[Message]()
    await deliver(outbox, 2000, 3.2, asyncio.Semaphore(0), sent)
    assert sent == []
    assert calls["claim"] <= 6
    # What was on its way is given back at the end.
    assert calls["postpone"] == 4


async def test_messages_that_wait_for_their_host_cost_one_look_for_each_that_ends(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, sent = count_calls(outbox, monkeypatch), list[Message]()
    await deliver(outbox, 200, 3.0, asyncio.Semaphore(1000), sent)
    assert len(sent) == 200
    assert calls["claim"] <= 210
    assert calls["postpone"] == 0
