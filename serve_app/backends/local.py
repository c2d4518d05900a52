"""Runs the engine in this process, without Ray or HTTP. Each model is loaded at its first use."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from threading import Lock
from typing import TYPE_CHECKING

from deployments.annotators.catalogue import NO_NETWORKS, Annotators
from deployments.annotators.spec import AnnotatorSpecs
from deployments.engine.protocol.engine_config import DEFAULTS, EngineConfig
from deployments.engine.protocol.errors import EngineError, EngineStopped, ModelLoadError
from deployments.engine.protocol.events import Event, Failed
from deployments.engine.protocol.inputs import Enlargement
from deployments.engine.protocol.report import TokenCount
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import ModelSpec, UpscalerSpec
from deployments.process_memory.garbage_collection import collector_paused
from deployments.registry import find_clashes, with_known_size
from deployments.source_checks import check_source
from deployments.uploads.enlarging import PictureEnlarger
from deployments.uploads.intake import Intake
from deployments.weights.local_files import with_local_digest
from serve_app.backends.protocol import BackendReport

if TYPE_CHECKING:
    from deployments.engine.worker.engine_worker import EngineWorker

log = logging.getLogger(__name__)


class LocalBackend:
    """A `Backend` over an `EngineWorker`. Works on any event loop, and on several one after another."""

    def __init__(
        self,
        specs: Sequence[ModelSpec],
        config: EngineConfig = DEFAULTS,
        annotators: AnnotatorSpecs = NO_NETWORKS,
        upscalers: Sequence[UpscalerSpec] = (),
    ) -> None:
        """`annotators` make hints from photos, `upscalers` are loaded with the first model.

        Raises ModelLoadError where a model's folder does not say what it is.
        """
        if not specs or find_clashes(specs):
            raise ValueError(
                f"a name per model is needed, each used once: {', '.join(find_clashes(specs)) or 'no models'}"
            )
        self._models = tuple(with_local_digest(with_known_size(spec)) for spec in specs)
        self.annotators = Annotators(annotators, config.device)
        self._upscalers = tuple(upscalers)
        self._config = config
        self._intake = Intake(self.annotators)
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load-models")
        self._loading: Future[EngineWorker] | None = None
        self._enlarger: PictureEnlarger | None = None
        self._closed = False
        self._lock = Lock()

    @property
    def models(self) -> tuple[ModelSpec, ...]:
        """The models, with their native sizes; the first is the default."""
        return self._models

    @property
    def counts(self) -> Mapping[str, int]:
        """Nothing: there are no replicas to lose."""
        return {}

    def start(self) -> None:
        """Begins to load the default model, unless the engine was started before. Does not wait."""
        self._begin(self._models[0].name)

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        """Yields the request's events. Closing the generator frees its rows before the next step."""
        try:
            worker = await self._worker(request.model)
            ready = await self._intake.decode(request, worker)
            async with aclosing(worker.generate(ready)) as events:
                async for event in events:
                    yield event
        except EngineError as error:
            yield Failed(request.id, error)

    async def cancel(self, name: str, tenant: str) -> bool:
        """Ends the tenant's requests of this name that the engine has."""
        worker = self._loaded_worker()
        return worker is not None and worker.cancel(name, tenant)

    async def forget_states(self) -> None:
        """Has the engine forget its states."""
        if (worker := self._loaded_worker()) is not None:
            worker.states.clear()

    async def count_tokens(self, request: Request) -> tuple[TokenCount, TokenCount]:
        """Counts the tokens of the request's prompts."""
        worker = await self._worker(request.model)
        return await asyncio.to_thread(worker.count_tokens, request)

    async def make_hints(self, request: Request) -> tuple[bytes, ...]:
        """Makes the hints that the request's ControlNets would get, as PNG files."""
        return await self._intake.make_hints(request, await self._worker(request.model))

    async def enlarge(self, enlargement: Enlargement) -> bytes:
        """Enlarges a picture by an upscaler; loads the default model where none is loaded."""
        await self._worker(self._models[0].name)
        assert self._enlarger is not None
        return await self._enlarger.enlarge(enlargement)

    async def report(self) -> BackendReport:
        """The engine's state; not ready before `start` or a first request has loaded it. Raises ModelLoadError."""
        if self._closed or self._loading is None or not self._loading.done():
            return BackendReport()
        return BackendReport((self._loading.result().report(),))

    async def close(self) -> None:
        """Ends the engine's thread; requests that still run end with `Failed`."""
        with self._lock:
            self._closed = True
        if self._loading is not None:
            await asyncio.to_thread(self._stop, self._loading)
        self._intake.close()
        if self._enlarger is not None:
            self._enlarger.close()
        self._loader.shutdown(wait=False)

    def _loaded_worker(self) -> "EngineWorker | None":
        loading = self._loading
        if self._closed or loading is None or not loading.done() or loading.exception() is not None:
            return None
        return loading.result()

    async def _worker(self, first: str) -> "EngineWorker":
        # A caller that leaves while models load must not take the loading away from the others.
        return await asyncio.shield(asyncio.wrap_future(self._begin(first)))

    def _begin(self, first: str) -> "Future[EngineWorker]":
        """Starts the engine with the model `first`, unless it was started before: it loads other models by itself."""
        with self._lock:
            if self._closed:
                raise EngineStopped("the service is closed")
            if self._loading is None:
                self._loading = self._loader.submit(self._load, first)
            return self._loading

    def _load(self, first: str) -> "EngineWorker":
        # Imported here, because this is the only line of serve_app that needs torch.
        with collector_paused():
            from deployments.engine.worker.engine_worker import EngineWorker

        for spec in self._models:
            check_source(spec)
        log.info("loading %s", first)
        try:
            worker = EngineWorker.load(self._models, self._config, first=first, upscalers=self._upscalers)
            self._enlarger = PictureEnlarger(worker.upscalers)
            return worker
        except EngineError:
            raise
        except Exception as error:
            # A device that is not there, or memory that ends. Raised as an EngineError, because health asks this too.
            log.exception("the models could not be loaded")
            raise ModelLoadError(
                f"the models could not be loaded on {self._config.device!r} as {self._config.dtype!r}"
            ) from error

    @staticmethod
    def _stop(loading: "Future[EngineWorker]") -> None:
        if loading.exception() is None:
            loading.result().stop()
