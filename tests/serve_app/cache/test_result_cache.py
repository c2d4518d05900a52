"""Nobody is served anything but the images that this very request would have made; and those are made once."""

import asyncio
import contextlib
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from deployments.engine.protocol.errors import EngineStopped, NumericalFailure, Overloaded
from deployments.engine.protocol.events import Accepted, Event, Finished, ImageDone, Timings
from deployments.engine.protocol.inputs import Uploads
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.request import Request
from serve_app.cache.result_cache import ResultCache
from serve_app.config.sections import CacheConfig
from serve_app.generation.fingerprint import Fingerprint
from serve_app.generation.result import Result, to_png
from serve_app.service import DiffusionService
from tests.serve_app.fakes import FakeBackend, Script, Step, failing, refusing, slow, success, until

CUP = GenerationParams(prompt="a red cup", seed=7, num_images=2)


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def cache() -> ResultCache:
    return ResultCache(CacheConfig())


@pytest.fixture
def service(backend: FakeBackend, cache: ResultCache) -> DiffusionService:
    return DiffusionService(backend, cache=cache)


async def ask(
    service: DiffusionService,
    params: GenerationParams = CUP,
    tenant: str = "",
    **also: Any,
) -> Result:
    params = params.model_copy(update=also)
    return await service.collect(await service.prepare(params, tenant=tenant))


def pictures(result: Result) -> list[bytes]:
    return [image.data for image in result.images]


def outdated(request: Request) -> list[Step]:
    """One image is of a replica that an update has not reached yet, the rest of the one that repeats the request."""
    *before, last, end = success(request)
    assert isinstance(last, ImageDone)
    return [*before, replace(last, is_current=False), end]


def gradually(*steps: Step) -> Script:
    """A success that takes its time after it was accepted; `steps` come then."""
    return lambda request: [Accepted(request.id, 0), 0.05, *steps, *success(request)[1:]]


async def test_what_was_made_is_served_again_and_told_to_be_so(service: DiffusionService, backend: FakeBackend) -> None:
    first, second = await ask(service), await ask(service)
    assert len(backend.asked) == 1
    assert pictures(first) == pictures(second)
    assert (first.source, second.source) == ("made", "cache")
    assert second.parameters == first.parameters
    assert second.id != first.id
    assert {image.request_id.partition(".")[0] for image in second.images} == {second.id}
    assert second.timings == Timings()


async def test_a_hit_is_a_request_like_others_accepted_images_and_an_end(service: DiffusionService) -> None:
    await ask(service)
    heard: list[type[Event]] = []
    async with aclosing(service.events(CUP)) as events:
        async for event in events:
            heard.append(type(event))
    assert heard == [Accepted, ImageDone, ImageDone, Finished]


async def test_tenants_share_nothing_also_not_in_flight(service: DiffusionService, backend: FakeBackend) -> None:
    backend.script = gradually()
    await asyncio.gather(ask(service, tenant="a"), ask(service, tenant="b"))
    assert len(backend.asked) == 2
    for tenant in ("a", "b"):
        assert (await ask(service, tenant=tenant)).source == "cache"
    assert (await ask(service, tenant="c")).source == "made"
    assert (await ask(service, tenant="c", seed=None, cache="reuse")).source == "cache"
    assert (await ask(service, tenant="d", seed=None, cache="reuse")).source == "made"


async def test_a_hash_is_not_trusted_the_whole_fingerprint_is_compared(
    service: DiffusionService, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("key", "work_key"):
        monkeypatch.setattr(Fingerprint, name, property(lambda _: "always the same"))
    await ask(service)
    assert (await ask(service, prompt="a blue cup")).source == "made"
    assert (await ask(service, prompt="a green cup", seed=None, cache="reuse")).source == "made"
    assert (await ask(service, prompt="a green cup", seed=8)).source == "made"
    assert len(backend.asked) == 4
    assert (await service.get_generation_stats())["cache"]["bad_entries"] == 3


async def test_uploaded_pictures_count(service: DiffusionService, backend: FakeBackend) -> None:
    red, blue = (to_png(Image.new("RGB", (64, 64), colour)) for colour in ("red", "blue"))
    sources = []
    for image, fit in ((red, "cover"), (red, "pad"), (blue, "cover"), (red, "cover")):
        files = Uploads(image=image, fit=fit)  # type: ignore[arg-type]
        sources.append((await service.collect(await service.prepare(CUP, uploads=files))).source)
    assert sources == ["made", "made", "made", "cache"]


async def test_without_a_seed_everything_is_made_anew_and_kept_under_the_seed_that_was_drawn(
    service: DiffusionService, backend: FakeBackend
) -> None:
    results = [await ask(service, seed=seed) for seed in (None, -1, None)]
    assert [result.source for result in results] == ["made"] * 3
    for result in results:
        again = await ask(service, result.parameters)
        assert (again.source, pictures(again)) == ("cache", pictures(result))


async def test_who_would_reuse_gets_the_latest_of_any_seed_and_is_told_its_seed(service: DiffusionService) -> None:
    assert (await ask(service, seed=None, cache="reuse")).source == "made"
    await ask(service, seed=1)
    await ask(service, seed=2)
    reused = await ask(service, seed=None, cache="reuse")
    assert reused.source == "cache"
    assert reused.parameters.seed == 2
    assert [image.seed for image in reused.images] == [2, 3]
    assert (await ask(service, seed=None, cache="reuse", num_inference_steps=9)).source == "made"
    assert (await ask(service, seed=5, cache="reuse")).source == "made"


async def test_no_store_neither_reads_nor_writes_nor_joins(service: DiffusionService, backend: FakeBackend) -> None:
    backend.script = gradually()
    await asyncio.gather(ask(service), ask(service, cache="off"))
    assert len(backend.asked) == 2
    assert (await ask(service, cache="off")).source == "made"
    assert (await ask(service, seed=8, cache="off")).source == "made"
    assert (await ask(service, seed=8)).source == "made"


async def test_no_cache_makes_a_new_result_and_keeps_it(service: DiffusionService, backend: FakeBackend) -> None:
    first = await ask(service)
    second = await ask(service, cache="refresh")
    assert (first.source, second.source, (await ask(service)).source) == ("made", "made", "cache")
    assert len(backend.asked) == 2


@pytest.mark.parametrize(
    "script",
    [
        failing(NumericalFailure("the picture was black"), 1),
        lambda request: success(request)[:-1],
        lambda request: [*success(request)[:-2], success(request)[-1]],
        lambda request: [*success(request)[:-1], RuntimeError("bug")],
        refusing(EngineStopped("gone")),
        outdated,
    ],
    ids=["an image failed", "no end", "an image is missing", "broken", "refused", "one is of another version"],
)
async def test_what_is_not_a_complete_success_of_this_version_is_never_kept(
    service: DiffusionService, backend: FakeBackend, script: Script
) -> None:
    backend.script = script
    for _ in range(2):
        with contextlib.suppress(EngineStopped, RuntimeError):
            await ask(service)
    assert len(backend.asked) == 2
    assert (await service.health()).cache_entries == 0
    backend.script = success
    assert (await ask(service, seed=None, cache="reuse")).source == "made"


async def test_what_is_too_old_is_made_anew() -> None:
    now = 1e9
    backend = FakeBackend()
    service = DiffusionService(backend, cache=ResultCache(CacheConfig(ttl_s=60), clock=lambda: now))
    await ask(service)
    now += 59
    assert (await ask(service)).source == "cache"
    now += 2
    assert (await ask(service)).source == "made"
    assert (await ask(service)).source == "cache"


async def test_identical_requests_at_the_same_time_are_made_once(
    service: DiffusionService, backend: FakeBackend
) -> None:
    backend.script = gradually()
    results = await asyncio.gather(*(ask(service) for _ in range(50)))
    assert len(backend.asked) == 1
    assert sorted(result.source for result in results) == ["made"] + ["shared"] * 49
    assert len({result.id for result in results}) == 50
    stats = await service.get_generation_stats()
    assert (stats["requests"], stats["finished"], stats["active"], stats["images"]) == (50, 50, 0, 100)
    assert stats["cache"]["coalesced"] == 49


async def test_the_first_ones_departure_costs_the_others_nothing(
    service: DiffusionService, backend: FakeBackend
) -> None:
    backend.script = gradually()
    first, *others = [asyncio.create_task(ask(service)) for _ in range(3)]
    await until(lambda: backend.running == 1)
    first.cancel()
    await asyncio.wait((first,))
    assert [result.source for result in await asyncio.gather(*others)] == ["shared"] * 2
    assert backend.cancelled == []
    stats = await service.get_generation_stats()
    assert (stats["requests"], stats["finished"], stats["cancelled"], stats["active"]) == (3, 2, 1, 0)


async def test_work_is_cancelled_when_nobody_wants_it_any_more(service: DiffusionService, backend: FakeBackend) -> None:
    backend.script = slow
    both = [asyncio.create_task(ask(service)) for _ in range(2)]
    await until(lambda: backend.running == 1)
    for task in both:
        assert backend.cancelled == []
        task.cancel()
        await asyncio.wait((task,))
    assert (len(backend.cancelled), backend.running) == (1, 0)


@pytest.mark.parametrize("other", [{"priority": "high"}, {"deadline_ms": 60_000}])
async def test_who_is_more_urgent_does_not_wait_for_another(
    service: DiffusionService, backend: FakeBackend, other: dict[str, Any]
) -> None:
    backend.script = gradually()
    await asyncio.gather(ask(service), ask(service, **other))
    assert len(backend.asked) == 2


async def test_two_with_a_deadline_are_each_dropped_at_their_own(
    service: DiffusionService, backend: FakeBackend
) -> None:
    backend.script = gradually()
    await asyncio.gather(*(ask(service, deadline_ms=60_000) for _ in range(2)))
    assert len(backend.asked) == 2


async def test_a_refusal_is_everybodys_and_the_next_one_tries(service: DiffusionService, backend: FakeBackend) -> None:
    backend.script = refusing(Overloaded("full"))
    results = await asyncio.gather(*(ask(service) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [Overloaded] * 3
    assert len(backend.asked) == 1
    backend.script = success
    assert (await ask(service)).source == "made"


async def test_emptied_is_empty_also_of_what_is_in_the_making(service: DiffusionService, backend: FakeBackend) -> None:
    await ask(service)
    backend.script = gradually()
    other = asyncio.create_task(ask(service, seed=8))
    await until(lambda: backend.running == 1)
    assert await service.empty_cache() == 1
    await other
    for seed in (7, 8):
        assert (await ask(service, seed=seed)).source == "made"
    assert await service.empty_cache() == 2


async def test_a_service_without_a_cache_makes_everything(backend: FakeBackend) -> None:
    for service in (
        DiffusionService(backend),
        DiffusionService(backend, cache=ResultCache(CacheConfig(enabled=False))),
    ):
        backend.asked.clear()
        backend.script = gradually()
        await asyncio.gather(ask(service), ask(service))
        await ask(service)
        assert len(backend.asked) == 3
        assert (await service.get_generation_stats())["total_cache_entries"] == 0


async def test_it_counts_what_it_does(service: DiffusionService) -> None:
    for seed in (1, 2, 1, 1, None):
        await ask(service, seed=seed)
    stats = await service.get_generation_stats()
    assert (stats["cache_hit_rate"], stats["total_cache_entries"]) == (0.5, 3)
    told = stats["cache"]
    assert told["memory"] == {"hits": 2, "misses": 2}
    assert told["redis"] == {"hits": 0, "misses": 0}
    # The script's timings, but for the queue, twice.
    assert told["saved_seconds"] == pytest.approx(2 * 0.036)
    assert told["bytes"] > 0
    assert {name: told[name] for name in ("evictions", "coalesced", "bad_entries", "redis_failures")} == dict.fromkeys(
        ("evictions", "coalesced", "bad_entries", "redis_failures"), 0
    )
    samples = {(sample.metric.name, *sample.values): sample.now for sample in service.samples()}
    assert samples["diffusion_cache_requests", "memory", "hit"] == 2
    assert samples["diffusion_cache_saved_seconds",] == pytest.approx(0.072)
    assert samples["diffusion_cache_bytes",] == told["bytes"]
    assert (stats["requests"], stats["finished"]) == (5, 5)
