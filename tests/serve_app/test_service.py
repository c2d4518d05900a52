"""What the service decides before the backend, and what it tells afterwards."""

import asyncio
import subprocess
import sys
import threading
from contextlib import aclosing

import pytest
from PIL import Image

from deployments.engine.protocol.errors import NumericalFailure, Overloaded, UnknownModel
from deployments.engine.protocol.events import Accepted, Finished
from deployments.engine.protocol.inputs import Uploads
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.settings import ControlSettings
from deployments.engine.protocol.spec import ModelSpec
from serve_app.backends.protocol import BackendReport
from serve_app.generation import prepare
from serve_app.generation.prepare import with_seed
from serve_app.generation.result import to_png
from serve_app.generation.styles import STYLES
from serve_app.service import DiffusionService
from tests.serve_app.fakes import TIMINGS, FakeBackend, failing, refusing, slow, until

CUP = GenerationParams(prompt="a red cup")


def test_serve_app_imports_no_torch_and_no_ray() -> None:
    code = (
        "import sys, serve_app, serve_app.client, serve_app.api.application;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'ray', 'diffusers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


async def test_the_guides_call_gives_pictures(service: DiffusionService) -> None:
    params = GenerationParams(
        prompt="A beautiful advertisement for a premium coffee brand, professional photography",
        negative_prompt="blurry, low quality, distorted",
        width=512,
        height=512,
        num_images=2,
        guidance_scale=7.5,
        num_inference_steps=50,
        seed=42,
    )
    images = await service.generate_text_to_image(params=params, model_name="maker/tiny")
    assert [image.size for image in images] == [(512, 512)] * 2


async def test_calls_at_the_same_time_run_at_the_same_time(service: DiffusionService, backend: FakeBackend) -> None:
    backend.script = lambda request: [Accepted(request.id, 0), 0.05, Finished(request.id, TIMINGS)]
    await asyncio.gather(*(service.generate_text_to_image(CUP) for _ in range(4)))
    assert backend.most_running == 4


@pytest.mark.parametrize("name", STYLES)
async def test_a_known_style_is_expanded_and_a_request_keeps_what_was_asked(
    service: DiffusionService, backend: FakeBackend, name: str
) -> None:
    result = await service.generate(CUP.model_copy(update={"style_preset": name.upper()}))
    assert result.effective_prompt == backend.asked[0].params.prompt == f"a red cup, {STYLES[name].text}"
    assert result.parameters.prompt == "a red cup"
    assert result.parameters.style_preset == name.upper()


@pytest.mark.parametrize(("style", "prompt"), [("in pastel chalk", "a red cup, in pastel chalk"), ("  ", "a red cup")])
async def test_free_text_is_appended_and_blank_text_is_none(service: DiffusionService, style: str, prompt: str) -> None:
    prepared = await service.prepare(CUP.model_copy(update={"style_preset": style}))
    assert prepared.request.params.prompt == prompt


@pytest.mark.parametrize("seed", [None, -1])
async def test_a_seed_is_drawn_once_and_told(service: DiffusionService, seed: int | None) -> None:
    results = [await service.generate(CUP.model_copy(update={"seed": seed, "num_images": 2})) for _ in range(3)]
    for result in results:
        assert [image.seed for image in result.images] == [result.parameters.seed, (result.parameters.seed or 0) + 1]
    assert len({result.parameters.seed for result in results}) == 3


async def test_asking_for_the_answers_parameters_asks_for_the_same_images(
    service: DiffusionService, backend: FakeBackend
) -> None:
    result = await service.generate(CUP.model_copy(update={"style_preset": "luxury"}))
    await service.generate(GenerationParams.model_validate(result.parameters.model_dump()))
    assert backend.asked[0].params == backend.asked[1].params
    assert backend.asked[0].id != backend.asked[1].id


async def test_defaults_are_the_models_own(service: DiffusionService) -> None:
    parameters = (await service.generate(CUP.model_copy(update={"model_name": "other"}))).parameters
    assert (parameters.width, parameters.height, parameters.sampler) == (128, 128, "euler_a")
    assert (parameters.num_inference_steps, parameters.guidance_scale) == (50, 7.5)


async def test_an_unknown_model_is_told_the_nearest_or_all(service: DiffusionService) -> None:
    with pytest.raises(UnknownModel, match="did you mean maker/tiny"):
        await service.generate_text_to_image(CUP, "maker/tinny")
    with pytest.raises(UnknownModel, match="known models: tiny, maker/tiny, other"):
        await service.generate_text_to_image(CUP, "0123456789")


async def test_a_refusal_and_a_failed_image_are_raised(service: DiffusionService, backend: FakeBackend) -> None:
    backend.script = refusing(Overloaded("the queue is full"))
    with pytest.raises(Overloaded):
        await service.generate_text_to_image(CUP)
    backend.script = failing(NumericalFailure("not finite"), 1)
    three = CUP.model_copy(update={"num_images": 3})
    with pytest.raises(NumericalFailure):
        await service.generate_text_to_image(three)
    result = await service.generate(three)
    assert [image.index for image in result.images] == [0, 2]
    assert [failure.index for failure in result.failures] == [1]


async def test_closing_the_events_cancels_the_request(service: DiffusionService, backend: FakeBackend) -> None:
    backend.script = slow
    async with aclosing(service.events(CUP, request_id="r1")) as events:
        await anext(events)
        assert backend.running == 1
    assert backend.cancelled == ["r1"]
    assert backend.running == 0


async def test_a_cancelled_call_cancels_its_request(service: DiffusionService, backend: FakeBackend) -> None:
    backend.script = slow
    call = asyncio.create_task(service.generate_text_to_image(CUP))
    await until(lambda: backend.running == 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert len(backend.cancelled) == 1


async def test_progress_is_asked_for_only_where_someone_looks_at_it(
    service: DiffusionService, backend: FakeBackend
) -> None:
    await service.generate(CUP)
    async for _ in service.events(CUP):
        pass
    assert [asked.progress_interval_s for asked in backend.asked] == [None, 0.0]


async def test_statistics_have_the_guides_keys_and_add_up(service: DiffusionService, backend: FakeBackend) -> None:
    await service.generate(CUP.model_copy(update={"num_images": 3}))
    for script in (refusing(Overloaded("full")), failing(NumericalFailure("nan"), 0), lambda _: [RuntimeError("bug")]):
        backend.script = script
        with pytest.raises(Exception, match=r"full|nan|bug"):
            await service.generate(CUP)
    backend.script = slow
    async with aclosing(service.events(CUP)) as events:
        await anext(events)
        assert (await service.get_generation_stats())["active"] == 1
    stats = await service.get_generation_stats()
    assert (stats["cache_hit_rate"], stats["loaded_models"], stats["total_cache_entries"]) == (0.0, 2, 0)
    assert (stats["unet_calls"], stats["unet_rows"], stats["mean_rows_per_call"]) == (4, 10, 2.5)
    assert (stats["images"], stats["failures"], stats["requests"], stats["active"]) == (3, 1, 5, 0)
    assert (stats["finished"], stats["refused"], stats["cancelled"], stats["broken"]) == (2, 1, 1, 1)
    assert stats["refusals"] == {"overloaded": 1}
    assert (stats["replays"], stats["quarantined"]) == (1, 0)
    assert [stats["latency_ms"][window]["count"] for window in ("1m", "5m", "60m")] == [2, 2, 2]


async def test_health_is_starting_then_healthy_then_unhealthy(service: DiffusionService, backend: FakeBackend) -> None:
    ready, not_ready = backend.now, BackendReport()
    seen = []
    for backend.now in (not_ready, ready, not_ready):
        seen.append((await service.health()).status)
    assert seen == ["starting", "healthy", "unhealthy"]


async def test_leaving_the_context_closes_the_backend(backend: FakeBackend) -> None:
    async with DiffusionService(backend):
        assert not backend.closed
    assert backend.closed


async def test_a_model_without_the_controlnet_stands_for_one_of_its_weights_and_revision_that_has_it() -> None:
    net = {"canny": "nowhere"}
    plain = ModelSpec("plain", "weights", native_size=64)
    older = ModelSpec("older", "weights", revision="of old", native_size=64, controlnets=net)
    other = ModelSpec("other", "more", native_size=64, controlnets=net)
    controlled = ModelSpec("controlled", "weights", native_size=64, controlnets=net)
    service = DiffusionService(FakeBackend(models=[plain, older, other, controlled]))
    params = CUP.model_copy(update={"controls": (ControlSettings(type="canny"),)})
    hint = Uploads(hints=(to_png(Image.new("RGB", (64, 64))),))

    async def chosen(name: str | None) -> str:
        prepared = await service.prepare(params.model_copy(update={"model_name": name}), uploads=hint)
        return prepared.request.model

    asked = ("plain", "other", "controlled", None)
    assert [await chosen(name) for name in asked] == ["controlled", "other", "controlled", "older"]


async def test_headers_are_read_off_the_loop_and_text_is_prepared_on_it(
    service: DiffusionService, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []

    def noted(params: GenerationParams) -> GenerationParams:
        threads.append(threading.current_thread())
        return with_seed(params)

    monkeypatch.setattr(prepare, "with_seed", noted)
    await service.prepare(CUP)
    await service.prepare(CUP, uploads=Uploads(image=to_png(Image.new("RGB", (64, 64)))))
    assert [thread is threading.current_thread() for thread in threads] == [True, False]
