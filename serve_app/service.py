"""The one service behind every surface: prepares requests, and runs them through the layers in front of the engines."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final, Unpack
from uuid import uuid4

from PIL import Image

from deployments.annotators.catalogue import NO_NETWORKS
from deployments.annotators.models import DEMO_ANNOTATORS
from deployments.annotators.spec import AnnotatorSpecs
from deployments.engine.protocol.engine_config import EngineConfig, EngineOptions
from deployments.engine.protocol.errors import EngineError, EngineStopped
from deployments.engine.protocol.events import Event
from deployments.engine.protocol.inputs import Enlargement, Fit, MaskAlpha, Uploads
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.report import TokenCount
from deployments.engine.protocol.settings import ControlSettings
from deployments.engine.protocol.spec import ModelSpec, UpscalerSpec
from deployments.loras.catalogue import NO_LORAS, LoraCatalogue
from deployments.metrics import Sample
from deployments.registry import DEMO_MODELS
from serve_app.backends.cancellation import CancellableBackend, RunningRequests
from serve_app.backends.counting import CountingBackend, WaitForPlace
from serve_app.backends.local import LocalBackend
from serve_app.backends.protocol import Backend, BackendReport
from serve_app.cache.result_cache import CachingBackend, ResultCache
from serve_app.cache.shared_states import forget_shared_states
from serve_app.generation.blocklist import NOTHING_BLOCKED
from serve_app.generation.interpolation import LANCZOS, interpolate
from serve_app.generation.prepare import find_model, prepare
from serve_app.generation.prepared import Prepared
from serve_app.generation.prompts import PromptRules
from serve_app.generation.result import Result, collect_result, decode_image, to_png
from serve_app.image_processor import ImageProcessor
from serve_app.labels.labeller import Labeller
from serve_app.labels.labelling import LabellingBackend
from serve_app.observability.callback_stats import CallbackCounts
from serve_app.observability.health import Health, Status
from serve_app.observability.request_stats import Statistics
from serve_app.service_counts import ServiceCounts
from serve_app.store.redis import RedisTier

log = logging.getLogger(__name__)

PROGRESS_INTERVAL_S: Final = 0.5
"""How often whoever waits for a whole result is told of progress: each event costs a millisecond on its way."""


class DiffusionService:
    """Makes images from `GenerationParams`. Calls that run at the same time share batches.

    Without a backend the engine runs in this process: each of `models` (the demo models if none are given) is loaded at
    its first use, and `engine` are the fields of `EngineConfig` for it: `device="cuda"`, `backend="torch"`, ...
    `annotators` make hints from photos, for requests and for `image_processor`: besides canny the demo family's if
    neither they nor models are given, else those given. Results are kept where a `cache` is given; `redis` is
    whatever this process uses Redis for, and shows in `health`. `prompts` says what becomes of prompts, and `loras`
    finds the LoRAs that requests name. Files say how they were made, and by default no more; `labeller` decides that.
    `upscalers` are the networks that enlarge pictures; a backend that is given has them already.
    """

    def __init__(
        self,
        backend: Backend | None = None,
        /,
        *,
        models: Sequence[ModelSpec] | None = None,
        annotators: AnnotatorSpecs | None = None,
        cache: ResultCache | None = None,
        redis: RedisTier | None = None,
        prompts: PromptRules | None = None,
        loras: LoraCatalogue = NO_LORAS,
        labeller: Labeller | None = None,
        upscalers: Sequence[UpscalerSpec] = (),
        **engine: Unpack[EngineOptions],
    ) -> None:
        if backend is not None and (models is not None or annotators is not None or engine):
            raise TypeError("give a backend, or models, annotators and the engine's settings: a backend has its own")
        engines: Backend
        self._start: Callable[[], None] = lambda: None
        if backend is None:
            chosen = DEMO_MODELS if models is None else models
            default = DEMO_ANNOTATORS if models is None else NO_NETWORKS
            local = LocalBackend(
                chosen, EngineConfig(**engine), default if annotators is None else annotators, upscalers
            )
            engines, self._start = local, local.start
            self.image_processor = ImageProcessor(local.annotators)
        else:
            engines = backend
            self.image_processor = ImageProcessor()
        self.callback_counts = CallbackCounts()
        self.running = RunningRequests()
        self.labeller = Labeller() if labeller is None else labeller
        self._cache = ResultCache() if cache is None else cache
        self._redis = redis
        self.prompts, self.loras = PromptRules() if prompts is None else prompts, loras
        self.upscalers = tuple(spec.name for spec in upscalers)
        statistics = Statistics()
        self._was_ready = False
        # What happens to a request, from the outside in.
        self._backend = CountingBackend(
            CancellableBackend(CachingBackend(LabellingBackend(engines, self.labeller), self._cache), self.running),
            statistics,
        )
        self._counts = ServiceCounts(
            self._backend, self._cache, redis, statistics, self.prompts.blocklist.counts, self.callback_counts
        )

    async def __aenter__(self) -> "DiffusionService":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def gateway_counts(self) -> Counter[str]:
        """What the gateway in front of this service counts."""
        return self._counts.gateway

    @property
    def models(self) -> tuple[ModelSpec, ...]:
        """The models that can be asked for; the first is the default."""
        return self._backend.models

    def model(self, name: str | None) -> ModelSpec:
        """The model with that name or alias; the default one for None. Raises UnknownModel."""
        return find_model(self.models, name)

    async def prepare(
        self,
        params: GenerationParams,
        *,
        uploads: Uploads | None = None,
        previews: int = 0,
        request_id: str | None = None,
        tenant: str = "",
        for_images: bool = True,
        seed_drawn: bool = False,
    ) -> Prepared:
        """Decides everything that needs no backend: model, defaults, size, seed, style. Raises InvalidParameter.

        `request_id` names the request in its answer and for `cancel`, among its tenant's; one is drawn without one.
        Tenants share the engines fairly. The blocklist is `for_images` only. `seed_drawn`: the caller gave no seed.
        """
        rules = self.prompts if for_images else replace(self.prompts, blocklist=NOTHING_BLOCKED)
        named = (previews, request_id or uuid4().hex, tenant)
        asked = (self.models, params, uploads, *named, rules, self.upscalers, self.loras, seed_drawn)
        # The headers of a hostile file take a while to read, as a LoRA's digest does: they would block the event loop.
        return await asyncio.to_thread(prepare, *asked) if uploads or params.loras else prepare(*asked)

    def run(self, prepared: Prepared, wait: WaitForPlace | None = None) -> AsyncGenerator[Event, None]:
        """Yields a request's events; closing it early cancels it. Full engines are asked again after `wait`."""
        return self._backend.generate(prepared.request, wait)

    async def count_tokens(self, prepared: Prepared) -> tuple[TokenCount, TokenCount]:
        """Counts the tokens of a prepared request's prompts, style included; the negative one's second. Raises
        EngineStopped where no engine has the model in memory, since none is started to count.
        """
        report = await self._report()
        if report is None or prepared.request.model not in report.loaded_models:
            raise EngineStopped("no engine has this model in memory now")
        return await self._backend.count_tokens(prepared.request)

    async def make_hints(self, prepared: Prepared) -> tuple[bytes, ...]:
        """Makes the hints that a prepared request's ControlNets would get, as PNG files. Raises EngineError."""
        return await self._backend.make_hints(prepared.request)

    async def enlarge(self, enlargement: Enlargement) -> bytes:
        """Enlarges a picture by `lanczos`, or by one of `upscalers`. Returns a PNG file. Raises EngineError."""
        return await (interpolate if enlargement.upscaler == LANCZOS else self._backend.enlarge)(enlargement)

    async def cancel(self, request_id: str, tenant: str = "") -> bool:
        """Cancels that tenant's request, or batch, of this id. Returns False where there is none.

        It may have come through another process. Its caller's stream ends with `Cancelled`.
        """
        return await self._backend.cancel(request_id, tenant)

    async def events(
        self,
        params: GenerationParams,
        *,
        uploads: Uploads | None = None,
        previews: int = 0,
        request_id: str | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Yields the request's events (`engine.protocol.events`). Closing the generator early cancels the request."""
        prepared = await self.prepare(params, uploads=uploads, previews=previews, request_id=request_id)
        async with aclosing(self.run(prepared)) as events:
            async for event in events:
                yield event

    async def generate(self, params: GenerationParams, *, request_id: str | None = None) -> Result:
        """Returns all images of a request. Raises what refused it, or the first failure if no image could be made."""
        return await self.collect(await self.prepare(params, request_id=request_id))

    async def collect(self, prepared: Prepared, on_event: Callable[[Event], None] | None = None) -> Result:
        """As `generate`, for a prepared request. `on_event` gets its events, `Progress` at intervals."""
        watched = replace(prepared.request, progress_interval_s=None if on_event is None else PROGRESS_INTERVAL_S)
        return await collect_result(prepared, self._backend.generate(watched), on_event)

    async def generate_text_to_image(
        self, params: GenerationParams, model_name: str | None = None
    ) -> list[Image.Image]:
        """Returns the images, in order. Raises the first error, of the request or of any image."""
        return await self._make_images(params, model_name, None)

    async def generate_image_to_image(
        self, init_image: Image.Image, params: GenerationParams, model_name: str | None = None, *, fit: Fit = "cover"
    ) -> list[Image.Image]:
        """Changes `init_image` as the prompt says, as far as `params.strength` allows. Raises as text-to-image does."""
        files = await asyncio.to_thread(lambda: Uploads(to_png(init_image), fit=fit, image_field="init_image"))
        return await self._make_images(params, model_name, files)

    async def inpaint_image(
        self,
        image: Image.Image,
        mask: Image.Image,
        params: GenerationParams,
        model_name: str | None = None,
        *,
        fit: Fit = "cover",
        mask_alpha: MaskAlpha | None = None,
    ) -> list[Image.Image]:
        """Repaints `image` where `mask` is white. Raises as text-to-image does.

        Where a mask's transparency could mean either, `mask_alpha` says what: see docs/pictures.md. Outside the mask
        the result is the image, resized where that was needed, to the byte.
        """
        files = await asyncio.to_thread(lambda: Uploads(to_png(image), to_png(mask), mask_alpha=mask_alpha, fit=fit))
        return await self._make_images(params, model_name, files)

    async def generate_with_controlnet(
        self,
        control_image: Image.Image,
        params: GenerationParams,
        controlnet_type: str = "canny",
        model_name: str | None = None,
        *,
        preprocess: bool = False,
        fit: Fit = "cover",
    ) -> list[Image.Image]:
        """Makes images that follow `control_image`: a hint, or with `preprocess` a photo that a hint is made from.

        `params.controls` says more than the type where it is given. Raises as text-to-image does.
        """
        controls = params.controls or (ControlSettings(type=controlnet_type),)
        params = params.model_copy(update={"controls": controls})
        hint = await asyncio.to_thread(to_png, control_image)
        return await self._make_images(params, model_name, Uploads(hints=(hint,), preprocess=preprocess, fit=fit))

    async def get_generation_stats(self) -> dict[str, Any]:
        """Returns what this service and its engines have counted since they began (docs/statistics.md)."""
        return self._counts.snapshot(await self._report() or BackendReport())

    def samples(self) -> Iterator[Sample]:
        """Yields what this service has counted, for Prometheus. May be called from any thread."""
        return self._counts.samples()

    async def all_samples(self) -> list[Sample]:
        """Returns `samples` and those of every engine that answers, with the same figures as in the statistics."""
        return self._counts.samples_with(await self._report() or BackendReport())

    async def health(self) -> Health:
        """Whether images can be made now."""
        report = await self._report()
        labels = self.labeller.describe()
        if report is None:
            return Health("unhealthy", "", 0, labels=labels)
        self._was_ready = self._was_ready or report.ready
        status: Status = "unhealthy" if self._was_ready else "starting"
        if report.ready:
            status = "healthy" if self._redis is None or await self._redis.check() else "degraded"
        return Health(status, report.device, len(report.loaded_models), len(self._cache), report.backend, labels)

    async def empty_cache(self) -> int:
        """Forgets all results, and returns how many this process had (see `ResultCache.empty`). Raises RedisGone.

        Engines forget the states that images have left for others, too.
        """
        await self._backend.forget_states()
        entries = await self._cache.empty()
        if self._redis is not None:
            await forget_shared_states(self._redis)
        return entries

    async def start(self) -> None:
        """Begins to load the default model, without waiting; a backend that was given has loaded its own."""
        self._start()

    async def close(self) -> None:
        """Frees the backend. Requests that still run are refused."""
        await self._backend.close()
        if self._redis is not None:
            await self._redis.close()

    async def _make_images(
        self, params: GenerationParams, model_name: str | None, uploads: Uploads | None
    ) -> list[Image.Image]:
        if model_name is not None:
            params = params.model_copy(update={"model_name": model_name})
        result = await self.collect(await self.prepare(params, uploads=uploads))
        if result.failures:
            raise result.failures[0].error
        return await asyncio.to_thread(lambda: [decode_image(image) for image in result.images])

    async def _report(self) -> BackendReport | None:
        """Returns the backend's report; None where the models cannot be loaded."""
        try:
            return await self._backend.report()
        except EngineError as error:
            log.error("the backend cannot report: %s", error.message)
            return None
