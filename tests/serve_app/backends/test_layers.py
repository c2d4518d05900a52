"""Laws of every layer between the service and the engines, each alone over a scripted backend."""

from collections.abc import Callable, Sequence
from contextlib import aclosing

import pytest

from deployments.engine.protocol.events import Accepted, Progress
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.report import TokenCount
from deployments.engine.protocol.request import Request
from serve_app.backends.cancellation import CancellableBackend, RunningRequests
from serve_app.backends.counting import CountingBackend
from serve_app.backends.layer import Layer
from serve_app.backends.load_shedding import SheddingBackend
from serve_app.backends.protocol import Backend
from serve_app.backends.replays import ReplayingBackend
from serve_app.backends.routing import RoutingBackend
from serve_app.cache.result_cache import CachingBackend, ResultCache
from serve_app.config.sections import CacheConfig
from serve_app.observability.request_stats import Statistics
from tests.serve_app.fakes import OTHER, TINY, FakeBackend, slow, success

LAYERS: dict[str, Callable[[Backend], Backend]] = {
    "nothing": Layer,
    "counting": lambda inner: CountingBackend(inner, Statistics()),
    "cancellable": lambda inner: CancellableBackend(inner, RunningRequests()),
    "no cache": lambda inner: CachingBackend(inner, ResultCache()),
    "cache": lambda inner: CachingBackend(inner, ResultCache(CacheConfig())),
    "replaying": ReplayingBackend,
    "shedding": SheddingBackend,
    "routing": lambda inner: RoutingBackend([inner]),
}

every_layer = pytest.mark.parametrize("around", LAYERS.values(), ids=list(LAYERS))


def _without_progress(events: Sequence[object]) -> list[object]:
    return [event for event in events if not isinstance(event, Progress)]


def request(model: str = "tiny") -> Request:
    params = GenerationParams(prompt="a cup", seed=1, num_images=2, model_name=model, width=64, height=64)
    return Request("r1", params, name="cup", tenant="acme")


@every_layer
async def test_a_layer_passes_on_the_events_of_the_backend_behind_it(around: Callable[[Backend], Backend]) -> None:
    inner = FakeBackend()
    events = [event async for event in around(inner).generate(request())]
    # Progress that nobody has read yet may give way to newer progress.
    assert _without_progress(events) == _without_progress(success(request()))
    assert inner.asked == [request()]


@every_layer
async def test_closing_a_layers_events_early_closes_those_behind_it(around: Callable[[Backend], Backend]) -> None:
    inner = FakeBackend(slow)
    async with aclosing(around(inner).generate(request())) as events:
        assert isinstance(await anext(events), Accepted)
        assert inner.running == 1
    assert (inner.running, inner.cancelled) == (0, ["cup"])


@every_layer
async def test_a_layer_has_the_models_reports_and_ends_of_the_backend_behind_it(
    around: Callable[[Backend], Backend],
) -> None:
    inner = FakeBackend()
    layer = around(inner)
    assert layer.models == (TINY, OTHER)
    assert (await layer.report()).loaded_models == inner.now.loaded_models
    assert await layer.count_tokens(request()) == (TokenCount(2, 1, 75, 4), TokenCount(0, 1, 75, 4))
    assert await layer.make_hints(request()) == ()
    assert not await layer.cancel("cup", "acme")
    assert inner.asked_to_cancel == [("cup", "acme")]
    await layer.close()
    assert inner.closed


async def test_each_model_has_the_backend_that_hosts_it() -> None:
    one, other = FakeBackend(models=[TINY]), FakeBackend(models=[OTHER])
    both = RoutingBackend([one, other])
    assert both.models == (TINY, OTHER)
    assert both.counts == {"replays": 2}
    assert [event async for event in both.generate(request("other"))]
    assert (len(one.asked), len(other.asked)) == (0, 1)
